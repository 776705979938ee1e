"""Checks the contract of a task (tasks/README.md): its declared features, its documents."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from speechlm_jax.arrays import Bool, ndarray
from speechlm_jax.data.formats import Example
from speechlm_jax.data.tasks import SpeechTextVocabulary, output_features
from speechlm_jax.errors import UserError
from speechlm_jax.vocab import SPECIALS, Vocab

_DECLARE = "declare output_features=tasks.output_features()"
_APPEND = "end the preprocessors with seqio.preprocessors.append_eos"


def check_features(features: Mapping[str, Any]) -> None:
    """Checks the output features that a SeqIO task or mixture declares, before it reads anything.

    Raises:
      UserError: a feature other than `targets` and `inputs`, no `targets`, or a feature that does
        not hold ids of the vocabulary in use.
    """
    known = output_features()
    for name in features:
        if name not in known:
            raise UserError(f"has an output feature '{name}'; {_DECLARE}: inputs and targets")
    if "targets" not in features:
        raise UserError(f"has no output feature 'targets'; {_DECLARE}")
    for name, feature in features.items():
        vocabulary = getattr(feature, "vocabulary", None)
        if not isinstance(vocabulary, SpeechTextVocabulary):
            raise UserError(
                f"output feature '{name}' has a {type(vocabulary).__name__}, whose ids are not "
                f"those of the rows; {_DECLARE}"
            )
        if not feature.dtype.is_integer or feature.rank != 1:
            raise UserError(
                f"output feature '{name}' is {feature.dtype.name} of rank {feature.rank}, not a "
                f"vector of ids; {_DECLARE}"
            )


def known_ids(vocab: Vocab) -> Bool[ndarray, " vocab"]:
    """Returns a mask of the ids of text, specials, voices and codes; not of spare or padding."""
    known = vocab.allowed("text", "speech", specials=SPECIALS).mask(vocab.size)
    known[vocab.voice_offset : vocab.speech_offset] = True
    return known


def row_to_example(row: Mapping[str, Any], *, known: Bool[ndarray, " vocab"], eos: int) -> Example:
    """Turns a task's output into an example; checks that all ids have meaning, the last is eos.

    Args:
      row: `targets`, and optionally `inputs`: integers, " length".
      known: mask from `known_ids`.
      eos: id that ends a document.

    Raises:
      UserError: a feature is not a vector of integers, an id is outside the vocabulary or has no
        meaning in it, or the document does not end in exactly one eos.
    """
    inputs, targets = (_to_ids(row, name, known) for name in ("inputs", "targets"))
    example = Example(inputs, targets)
    if not len(inputs) and len(targets) <= 1 and (targets == eos).all():
        return Example(inputs, targets[:0])  # the packer counts it
    if not len(targets) or targets[-1] != eos:
        raise UserError(f"targets do not end in eos, id {eos}; {_APPEND}")
    if targets[-2:].tolist() == [eos, eos]:
        raise UserError(f"targets end in eos, id {eos}, twice; append it once")
    return example


def _to_ids(row: Mapping[str, Any], name: str, known: Bool[ndarray, " vocab"]) -> np.ndarray:
    ids = np.asarray(row[name]) if name in row else np.zeros(0, np.int32)
    if ids.dtype.kind not in "iu" or ids.ndim != 1:
        raise UserError(f"{name} are {ids.dtype} of rank {ids.ndim}, not a vector of ids")
    if ids.size:
        _check_ids(ids, name, known)
    return ids.astype(np.int32, copy=False)


def _check_ids(ids: np.ndarray, name: str, known: np.ndarray) -> None:
    low, high = ids.min(), ids.max()
    if low < 0 or high >= len(known):
        raise UserError(
            f"{name} have id {low if low < 0 else high}; the vocabulary has ids 0..{len(known) - 1}"
        )
    are_known = known[ids]
    if not are_known.all():
        raise UserError(
            f"{name} have id {ids[~are_known][0]}, which is spare or padding in the vocabulary "
            f"of {len(known)} ids: no text, special, voice or code"
        )
