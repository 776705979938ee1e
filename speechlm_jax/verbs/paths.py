"""Checks of a command's arguments, made before JAX is imported; the verbs use them too."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from speechlm_jax import artifacts, bucket
from speechlm_jax.audio.archives import RECORDINGS, is_tar
from speechlm_jax.audio.recordings import CLIPS
from speechlm_jax.audio.wav import check_file
from speechlm_jax.bundle.contents import check_bundle, is_training
from speechlm_jax.codes import CODES
from speechlm_jax.convert.folder_files import WHISPER_TYPES, read_object
from speechlm_jax.errors import UserError
from speechlm_jax.train import checkpoint_folder
from speechlm_jax.train.checkpoint_folder import Meta

AUDIO_SUFFIXES = (".wav", ".flac")  # formats of written audio
STDIN = "-"


def check_places(places: Sequence[str | Path]) -> None:
    """Raises UserError for the first place that is no recording and holds none.

    A file must not be empty; a folder must have a manifest, or recordings in or below it. Standard
    input (`-`) can be given once; what is at an address is not looked at.
    """
    if sum(str(place) == STDIN for place in places) > 1:
        raise UserError(f"{STDIN}: standard input can be read once; give it once")
    for place in places:
        if str(place) == STDIN or bucket.is_address(place):
            continue
        if not os.path.isdir(place):  # Path.is_dir raises if a name is too long
            check_file(place)
        elif not os.path.isfile(os.path.join(place, CLIPS)):
            require_recordings(Path(place))


def find_files(folder: Path) -> Iterator[Path]:
    """Yields all files in and below a folder, without hidden files and folders."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def require_recordings(folder: Path) -> None:
    """Raises UserError if a folder without a manifest has no recordings in or below it."""
    if not any(p.suffix.lower() in RECORDINGS or is_tar(p) for p in find_files(folder)):
        raise UserError(
            f"{folder}: has no {CLIPS} and no recordings ({', '.join(RECORDINGS)}, or tar files of "
            "them); give a folder that has"
        )


def check_out_folder(out: Path) -> None:
    """Raises UserError if the folder to be written is a file."""
    if os.path.lexists(out) and not os.path.isdir(out):
        raise UserError(f"--out {out}: is a file; name a folder")


def check_speech(what: str, out: Path) -> None:
    """Raises UserError if `what` is no codes, codes file or text, or `out` cannot be its audio.

    A codes folder and a file of another kind (with a suffix) are refused. A word is taken as text,
    even if it is also the name of a file or of another folder.
    """
    if what.endswith(".jsonl"):
        if not os.path.isfile(what):
            raise UserError(f"{what}: {'is a folder' if os.path.isdir(what) else 'no such file'}")
        check_out_folder(out_folder(out))
        return
    if os.path.isfile(os.path.join(what, CODES)):
        raise UserError(f"{what}: is a folder; give its {CODES}")
    if Path(what).suffix and os.path.isfile(what):
        raise UserError(f"{what}: is a file of another kind; give a {CODES}, codes, or a text")
    if not what.strip():
        raise UserError(f"{what!r}: holds no words; give a text to say")
    check_out_audio(out)


def out_folder(out: Path) -> Path:
    """Returns the folder of several clips: `out` without an audio suffix."""
    return out.with_suffix("") if out.suffix.lower() in AUDIO_SUFFIXES else out


def check_out_audio(out: Path) -> None:
    """Raises UserError if the audio to be written has no audio suffix, or is a folder."""
    if out.suffix.lower() not in AUDIO_SUFFIXES or os.path.isdir(out):
        raise UserError(f"--out {out}: audio is written as .wav or .flac; name such a file")


def check_documents(file: Path) -> None:
    """Raises UserError if a file of documents is missing or is a folder."""
    if os.path.isdir(file):
        raise UserError(f"{file}: is a folder; give documents in .txt or .jsonl")
    if not os.path.isfile(file):
        raise UserError(f"{file}: no such file; give documents in .txt or .jsonl")


def check_folder(folder: Path, wanted: str) -> None:
    """Raises UserError if there is no such folder; `wanted` says what it should be."""
    if not os.path.isdir(folder):
        what = "is a file" if os.path.lexists(folder) else "no such folder"
        raise UserError(f"{folder}: {what}; give {wanted}")


def check_checkpoint(place: Path) -> Meta:
    """Returns the metadata of a run's newest checkpoint, or of one; raises UserError if none."""
    check_folder(place, "a run's folder, or one of its steps")
    return checkpoint_folder.told_meta(place)


def check_mixture(place: str | Path) -> None:
    """Raises UserError if there is no such file of prepared rows; a bucket is not asked."""
    if not bucket.is_address(place) and not os.path.isfile(place):
        raise UserError(
            f"--mixture {place}: no such file; give the .mixture.json that `speechlm prepare` wrote"
        )


def check_source(source: Path, out: Path) -> None:
    """Raises UserError if the model to convert is no folder, or if `out` is not empty."""
    check_folder(source, "a model folder of Hugging Face, or a run")
    artifacts.require_new(out)


def is_whisper(source: Path) -> bool:
    """Returns whether a folder is a Whisper (or a tokenizer made from it), of theirs or a run.

    Such a model is converted without other models.
    """
    if os.path.isfile(source / "config.json"):
        kind = read_object(source, "config.json").get("model_type")
        if kind is not None:
            return kind in WHISPER_TYPES
    if not is_training(source):
        return False
    config = checkpoint_folder.told_meta(source).config
    return isinstance(config, dict) and config.get("class") == "SpeechTokenizerExperiment"


def check_codes(place: Path) -> None:
    """Raises UserError if a folder has no manifest and is no bundle: its codes are not known."""
    if not os.path.isfile(place / artifacts.MANIFEST):
        check_bundle(place)
