"""A folder -> a bundle. The folder has a `bundle.json`, a training, or a vocabulary."""

import dataclasses
import os
from pathlib import Path

from jax.sharding import Mesh

from speechlm_jax import artifacts
from speechlm_jax.bundle.contents import (
    BUNDLE,
    Contents,
    Part,
    PartName,
    check_bundle,
    is_training,
    read_contents,
)
from speechlm_jax.bundle.models import Bundle
from speechlm_jax.codes import KIND, CodesIdentity, read_identity
from speechlm_jax.experiment.configs import (
    LanguageModelExperiment,
    SpeechTokenizerExperiment,
    experiment_from_json,
)
from speechlm_jax.text import TextTokenizer
from speechlm_jax.train import checkpoint_folder
from speechlm_jax.train.checkpoint_folder import Meta
from speechlm_jax.vocab import Vocab
from speechlm_jax.vocab_files import VOCAB, find_text, read_vocab


def open_bundle(place: str | Path, *, batch_size: int = 8, mesh: Mesh | None = None) -> Bundle:
    """Opens the models of a folder; the default batch size suits few requests.

    Args:
      place: a folder with a `bundle.json`, the folder of a training or of one of its checkpoints,
        or a folder with a `vocab.json` (from `speechlm vocab` or `speechlm convert`).
      batch_size: batch size of every model.
      mesh: see `Bundle`.

    Raises:
      UserError: the folder is none of these, or is damaged.
    """
    place = Path(place)
    check_bundle(place)
    folder, contents = place, Contents()
    if (place / BUNDLE).is_file():
        contents = read_contents(place)
    elif is_training(place):
        training = checkpoint_folder.training_folder(place)
        inside = os.path.relpath(place.resolve(), training)
        folder = place if inside == os.curdir else training
        contents = trained_contents(folder, inside)
    else:
        contents = Contents(text=find_text(place), vocab=read_vocab(place / VOCAB))
    return Bundle(folder, contents, batch_size=batch_size, clip_batch_size=batch_size, mesh=mesh)


def trained_contents(folder: Path, checkpoint: str) -> Contents:
    """Returns a training as a bundle of one part, whose name follows from its experiment.

    Its vocabulary and text vocabulary are files in the training's folder. Without a `vocab.json`,
    the vocabulary comes from the checkpoint's metadata.

    Args:
      checkpoint: the checkpoint, relative to `folder`; "." for the newest one.

    Raises:
      UserError: the training has no complete checkpoint, or one of another version.
    """
    meta = checkpoint_folder.told_meta(folder / checkpoint)
    name = part_name(meta, folder)
    text = find_text(folder)
    part = Part(checkpoint, text=text)
    if name == "text_to_token":
        voiced = dataclasses.replace(part, vocab=trained_vocab(folder, meta))
        return Contents(text=text, parts={name: voiced})
    vocab = trained_vocab(folder, meta) if name == "lm" else None
    return Contents(text=text, vocab=vocab, parts={name: part})


def part_name(meta: Meta, where: str | Path) -> PartName:
    """Returns the part of a bundle that a checkpoint is."""
    experiment = experiment_from_json(meta.config, str(where))
    if isinstance(experiment, LanguageModelExperiment):
        return experiment.kind
    return "tokenizer" if isinstance(experiment, SpeechTokenizerExperiment) else "speech_decoder"


def trained_vocab(folder: Path, meta: Meta) -> Vocab | None:
    """Returns the vocabulary of a training; None if it was not saved, as in earlier versions."""
    if (folder / VOCAB).is_file():
        return read_vocab(folder / VOCAB)
    told = meta.described.get("vocabulary")
    return Vocab.from_json(told) if isinstance(told, dict) else None


def open_vocab(place: str | Path) -> tuple[Vocab, TextTokenizer]:
    """Returns the vocabulary of a bundle's rows and language models, and its text vocabulary.

    Raises:
      UserError: as in `open_bundle`; or the two do not belong together.
    """
    bundle = open_bundle(place)
    return bundle.vocab, bundle.text


def open_codes(place: str | Path) -> CodesIdentity:
    """Returns the identity of codes.

    Args:
      place: a folder of codes, or any folder that `open_bundle` takes.
    """
    folder = Path(place)
    if (folder / artifacts.MANIFEST).is_file() and not (folder / VOCAB).is_file():
        if artifacts.read_manifest(folder).kind == KIND:
            return read_identity(folder)
    return open_bundle(folder).codes
