"""Contents of a bundle, as its `bundle.json` lists them. Imports no JAX.

    {"version": 1, "text": "text.model", "vocab": {...},
     "parts": {"tokenizer": {"folder": "tokenizer", "text": "text.model", "fingerprint": "..."}}}

Folders and files are in the folder of `bundle.json`, or beside that folder (`../lm`).
"""

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from speechlm_jax import artifacts, bucket
from speechlm_jax import config as configs
from speechlm_jax.errors import UserError
from speechlm_jax.train import checkpoint_folder
from speechlm_jax.vocab import Vocab
from speechlm_jax.vocab_files import TEXT_MODEL, VOCAB

BUNDLE = "bundle.json"
VERSION = 1
PartName: TypeAlias = Literal["tokenizer", "text_to_token", "lm", "chat", "speech_decoder"]
PART_NAMES: tuple[PartName, ...] = get_args(PartName)
TITLES: dict[PartName, str] = {
    "tokenizer": "speech tokenizer",
    "text_to_token": "text-to-token model",
    "lm": "language model",
    "chat": "chat model",
    "speech_decoder": "speech decoder",
}
# The places of a whole run's models, and of the vocabulary of its text-to-token model.
RUN_FOLDERS: dict[PartName, str] = {
    "tokenizer": "tokenizer",
    "text_to_token": "text_to_token",
    "lm": "lm_interleaved",
    "chat": "chat",
    "speech_decoder": "speech_decoder",
}
RUN_VOICED = "prepared/q_text_to_token.vocab.json"


@dataclasses.dataclass(frozen=True)
class Part:
    """A trained model of a bundle.

    Attributes:
      folder: folder of its training or of one of its checkpoints, relative to the bundle's folder.
      text: file of its text vocabulary; "" if it has none.
      vocab: vocabulary of a text-to-token model, with the voices.
      fingerprint: fingerprint of its weights; "" accepts any weights in the folder.
    """

    folder: str
    text: str = ""
    vocab: Vocab | None = None
    fingerprint: str = ""

    def __post_init__(self) -> None:
        for name in filter(None, ("folder", self.text and "text")):
            _require_beside(getattr(self, name), name)


@dataclasses.dataclass(frozen=True)
class Contents:
    """Contents of a bundle.

    Attributes:
      text: file of the text vocabulary of rows and language models; "" if there is none.
      vocab: vocabulary of rows and language models; None joins the text vocabulary and the codes
        of the speech tokenizer.
      parts: trained models by `PartName`.
      version: version of this file format.
    """

    text: str = ""
    vocab: Vocab | None = None
    parts: dict[str, Part] = dataclasses.field(default_factory=dict)
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise UserError(f"version: {self.version}; this version of speechlm reads {VERSION}")
        for name in self.parts.keys() - set(PART_NAMES):
            raise UserError(f"parts: {name!r} is none of {', '.join(PART_NAMES)}")
        if self.text:
            _require_beside(self.text, "text")

    @property
    def titles(self) -> str:
        """Names of the parts in words, e.g. for errors."""
        return ", ".join(TITLES[name] for name in PART_NAMES if name in self.parts) or "no model"


def _require_beside(name: str, field: str) -> None:
    """Raises UserError if a path is neither in the bundle's folder nor beside it."""
    below = name.removeprefix("../")
    is_beside = name == os.curdir or artifacts.is_inside(below)
    if not is_beside or bucket.is_address(name) or "\0" in name:
        raise UserError(
            f"{field}: {name!r} lies neither in the bundle's folder nor beside it; join its parts "
            "again with `speechlm bundle make`"
        )


def beside(folder: str | Path, name: str) -> Path:
    """Resolves a path that a bundle lists, relative to the bundle's folder."""
    if name.startswith("../"):
        return Path(folder).resolve().parent / name.removeprefix("../")
    return Path(folder) / name


def read_contents(folder: str | Path) -> Contents:
    """Reads the `bundle.json` of a folder; raises UserError if it is missing or broken."""
    path = Path(folder) / BUNDLE
    data = artifacts.read_json(path)
    try:
        return configs.from_json(Contents, data if isinstance(data, dict) else {"": data})
    except UserError as error:
        raise UserError(f"{path}: is no bundle of this version ({error})") from None


def write_contents(folder: str | Path, contents: Contents) -> None:
    """Writes the `bundle.json` of a folder."""
    artifacts.write_json(Path(folder) / BUNDLE, configs.to_json(contents))


def whole_run() -> Contents:
    """Returns the contents of a whole run that is fully trained; they accept any weights."""
    parts = {
        name: Part(folder, text="" if name == "speech_decoder" else TEXT_MODEL)
        for name, folder in RUN_FOLDERS.items()
    }
    return Contents(text=TEXT_MODEL, parts=parts)


def is_whole_run(folder: str | Path) -> bool:
    """Returns whether a folder has the layout of a whole run, with or without a `bundle.json`."""
    text, tokenizer = (os.path.join(folder, name) for name in (TEXT_MODEL, "tokenizer"))
    return os.path.isfile(text) and os.path.isdir(tokenizer)


def is_training(folder: Path) -> bool:
    """Returns whether a folder is a training's, its checkpoints folder, or one checkpoint."""
    if os.path.isfile(folder / checkpoint_folder.CHECKSUMS):
        return True
    kept = checkpoint_folder.checkpoints_folder(folder)
    return os.path.isdir(kept) and (kept != folder or bool(checkpoint_folder.steps(kept)))


def check_bundle(folder: str | Path, *parts: PartName) -> None:
    """Checks that a folder can be opened as a bundle and that its `bundle.json` has these parts.

    Which part a training is, is not checked: its config takes JAX.

    Raises:
      UserError: the folder is no bundle or lacks a part; the message says what to do.
    """
    folder = Path(folder)
    if os.path.isfile(folder / BUNDLE):
        contents = read_contents(folder)
        require_parts(folder, contents, parts)
        for name in parts:
            if not os.path.isdir(beside(folder, contents.parts[name].folder)):
                raise UserError(
                    f"{folder}: has no {TITLES[name]} at {contents.parts[name].folder}, which its "
                    f"{BUNDLE} names; put it back, or write the bundle anew"
                )
            checkpoint_folder.told_meta(beside(folder, contents.parts[name].folder))
    elif is_training(folder):
        checkpoint_folder.told_meta(folder)
    elif os.path.isfile(folder / VOCAB):
        require_parts(folder, Contents(), parts)
    elif is_whole_run(folder):
        raise UserError(
            f"{folder}: has no {BUNDLE} yet; `speechlm bundle upgrade {folder}` writes it"
        )
    else:
        raise UserError(
            f"{folder}: holds no run and no bundle; give --run the folder of a training, of "
            "`speechlm bundle make`, or of a whole run"
        )


def require_parts(folder: Path, contents: Contents, parts: Iterable[PartName]) -> None:
    """Raises UserError for the first of `parts` that a bundle lacks."""
    for name in parts:
        if name not in contents.parts:
            raise UserError(
                f"{folder}: has no {TITLES[name]} (it has: {contents.titles}); give --run a bundle "
                f"with one, or join one with `speechlm bundle make --{name.replace('_', '-')}`"
            )
