"""Trained stages -> a bundle: lists their folders and checks that they belong together."""

import dataclasses
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.bundle.contents import (
    BUNDLE,
    PART_NAMES,
    RUN_VOICED,
    TITLES,
    Contents,
    Part,
    PartName,
    beside,
    is_whole_run,
    whole_run,
    write_contents,
)
from speechlm_jax.bundle.models import Bundle
from speechlm_jax.bundle.open import open_bundle, trained_vocab
from speechlm_jax.codes import CodesIdentity
from speechlm_jax.errors import UserError
from speechlm_jax.experiment import runs
from speechlm_jax.text import make_vocab
from speechlm_jax.train import checkpoint_folder
from speechlm_jax.vocab import Vocab
from speechlm_jax.vocab_files import TEXT_MODEL, VOCAB, read_text, read_vocab

_log = logging.getLogger("speechlm.bundle")


def make_bundle(out: str | Path, given: Mapping[PartName, str | Path]) -> dict[str, Any]:
    """Joins trained stages in a `bundle.json`, and replaces an existing one.

    Args:
      out: folder of the bundle. The parts stay in their place, which must be inside the parent
        folder of `out`.
      given: by part, the folder of a training, one of its checkpoints, or a bundle that has the
        part. Without "chat", the chat model is the language model.

    Returns:
      The result of `show_bundle`.

    Raises:
      UserError: a folder has no such part or is outside that parent folder, or the parts differ in
        codes, vocabulary or mel settings.
    """
    out = Path(out)
    if is_whole_run(out) or any(
        (out / name).exists() for name in (checkpoint_folder.FOLDER, VOCAB)
    ):
        raise UserError(f"{out}: holds a run or a vocabulary; give a new folder")
    if not given:
        raise UserError(f"{out}: is given no part; name one, e.g. --tokenizer runs/my_tokenizer")
    given = {"chat": given["lm"], **given} if "lm" in given else given
    sources: dict[PartName, Bundle] = {}
    for name in PART_NAMES:
        if (place := given.get(name)) is not None:
            sources[name] = _source(name, Path(place))
    check_together(sources)
    parts = {name: _moved(source, name, out) for name, source in sources.items()}
    first = sources.get("lm") or sources.get("chat") or next(iter(sources.values()))
    text = first.contents.text
    contents = Contents(
        text=_relative(beside(first.folder, text), out) if text else "",
        vocab=first.contents.vocab,
        parts=parts,
    )
    Bundle(out, contents).check_mel()
    write_contents(out, contents)
    return show_bundle(out)


def _source(name: PartName, place: Path) -> Bundle:
    """Opens the bundle at `place`; raises UserError if it lacks the part.

    A bundle without "chat" has its language model as that part.
    """
    found = open_bundle(place)
    if name == "chat" and name not in found.contents.parts:
        parts = {**found.contents.parts, name: found.part("lm")}
        found.contents = dataclasses.replace(found.contents, parts=parts)
    found.part(name)
    return found


def _moved(source: Bundle, name: PartName, out: Path) -> Part:
    """Returns a part with paths relative to `out` and the fingerprint of its weights."""
    part = source.part(name)
    text = part.text or (source.contents.text if name in ("lm", "chat") else "")
    return Part(
        _relative(source.path(name), out),
        text=_relative(beside(source.folder, text), out) if text else "",
        vocab=part.vocab,
        fingerprint=runs.run_fingerprint(source.path(name)),
    )


def _relative(path: Path, out: Path) -> str:
    real = path.parent.resolve() / path.name  # `path` itself may be a link to another disk
    name = Path(os.path.relpath(real, out.resolve())).as_posix()
    if not artifacts.is_inside(name.removeprefix("../")):
        raise UserError(
            f"{path}: lies outside of {out.resolve().parent}, the folder that holds {out}; give a "
            "bundle's folder that lies beside its parts"
        )
    return name


def check_together(sources: Mapping[PartName, Bundle]) -> None:
    """Checks that the parts make and take the same codes and that their vocabularies agree.

    Each model must have been trained with the vocabulary of its bundle, and the language model and
    the chat model must share one.

    Raises:
      UserError: two parts do not fit; the message names both.
    """
    told = {name: f"{sources[name].path(name)} ({TITLES[name]})" for name in sources}
    found = {name: _codes_of(name, source) for name, source in sources.items()}
    known = {name: codes for name, codes in found.items() if codes is not None}
    first = next(iter(known), None)
    for name, source in sources.items():
        meta = checkpoint_folder.told_meta(source.path(name))
        if first is not None:
            # The checkpoint of a speech decoder has only the tokenizer of its codes.
            theirs = known.get(name) or dataclasses.replace(
                known[first], tokenizer=meta.identity.get("tokenizer", "")
            )
            known[first].require_same(
                theirs, f"{told[first]} has codes of", f"{told[name]} has",
                "give parts of the same codes",
            )  # fmt: skip
        vocab = _vocab_of(name, source)
        if vocab is not None:
            runs.require(meta, source.path(name), {"vocabulary": vocab.fingerprint})
    if "lm" in sources and "chat" in sources:
        sources["lm"].vocab.require_same(sources["chat"].vocab, told["lm"], told["chat"])


def _vocab_of(name: PartName, source: Bundle) -> Vocab | None:
    """Returns the vocabulary of a language, chat or text-to-token model; None for other parts."""
    if name == "text_to_token":
        return source.voiced_vocab
    return source.vocab if name in ("lm", "chat") else None


def _codes_of(name: PartName, source: Bundle) -> CodesIdentity | None:
    """Returns the identity of a part's codes; None for a speech decoder, which saves only some."""
    if name == "tokenizer":
        return runs.trained_codes(source.path(name))
    vocab = _vocab_of(name, source)
    return None if vocab is None else vocab.codes


def upgrade_bundle(run: str | Path) -> dict[str, Any]:
    """Writes the `bundle.json` of a whole run, e.g. of an earlier version or after more training.

    Returns:
      The result of `show_bundle`.

    Raises:
      UserError: the folder is no whole run, or has no speech tokenizer yet.
    """
    run = Path(run)
    if not is_whole_run(run):
        raise UserError(
            f"{run}: is no run of an earlier version; `speechlm bundle make` joins trainings"
        )
    write_contents(run, run_contents(run))
    return show_bundle(run)


def run_contents(run: Path) -> Contents:
    """Returns the contents of a whole run, with the models trained so far.

    Models that were trained with another tokenizer or vocabulary are left out with a warning.

    Raises:
      UserError: the run has no speech tokenizer yet.
    """
    planned = whole_run()
    codes = runs.trained_codes(run / planned.parts["tokenizer"].folder)
    vocab = make_vocab(read_text(run / TEXT_MODEL), codes)
    parts = {}
    for name in PART_NAMES:
        folder = run / planned.parts[name].folder
        if not checkpoint_folder.steps(folder / checkpoint_folder.FOLDER):
            continue
        meta = checkpoint_folder.told_meta(folder)
        its = _voiced_vocab(run, folder, meta) if name == "text_to_token" else None
        try:
            runs.require(meta, folder, _wanted(name, codes, its or vocab))
        except UserError as error:
            _log.warning("%s; it is left out of %s", error, run / BUNDLE)
            continue
        parts[name] = dataclasses.replace(
            planned.parts[name], vocab=its, fingerprint=runs.meta_fingerprint(meta)
        )
    return dataclasses.replace(planned, vocab=vocab, parts=parts)


def _wanted(name: PartName, codes: CodesIdentity, vocab: Vocab) -> dict[str, str]:
    """Returns the identity that a part's training must have, by the names of `Stage.identity`."""
    if name == "tokenizer":
        return {}
    vocabulary = {} if name == "speech_decoder" else {"vocabulary": vocab.fingerprint}
    return {"tokenizer": codes.tokenizer, **vocabulary}


def _voiced_vocab(run: Path, folder: Path, meta: checkpoint_folder.Meta) -> Vocab | None:
    kept = run / RUN_VOICED
    return read_vocab(kept) if kept.is_file() else trained_vocab(folder, meta)


def show_bundle(place: str | Path) -> dict[str, Any]:
    """Describes a bundle as JSON data: parts, codes, mel settings, vocabulary and voices.

    Raises:
      UserError: the folder is no bundle.
    """
    bundle = open_bundle(place)
    parts = bundle.contents.parts
    result: dict[str, Any] = {"bundle": str(place), "parts": {}}
    for name in PART_NAMES:
        part = parts.get(name)
        if part is None:
            continue
        folder = bundle.path(name)
        meta = checkpoint_folder.told_meta(folder)
        found = runs.meta_fingerprint(meta)
        result["parts"][name] = {
            "folder": str(folder),
            "step": meta.step,
            "fingerprint": found,
            "is_as_joined": part.fingerprint in ("", found),
        }
    has_voices = "text_to_token" in parts and parts["text_to_token"].vocab is not None
    if "tokenizer" in parts or bundle.contents.vocab or has_voices:
        result["codes"] = bundle.codes.to_json()
    if "tokenizer" in parts:
        result["mel"] = configs.to_json(bundle.mel)
    if bundle.contents.text and "codes" in result:
        vocab = bundle.vocab
        result["vocabulary"] = {
            "fingerprint": vocab.fingerprint, "text_ids": vocab.text_size, "ids": vocab.size,
        }  # fmt: skip
    if has_voices:
        result["voices"] = list(bundle.voices)
    return result
