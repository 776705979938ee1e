"""A run's folder -> its models, with one clear line where it is not what a verb needs."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechlm_jax import artifacts
from speechlm_jax.data.text_norm import word_to_said
from speechlm_jax.errors import UserError
from speechlm_jax.quickstart.folders import find_run
from speechlm_jax.quickstart.models import Models
from speechlm_jax.text import TextTokenizer
from speechlm_jax.verbs.paths import BASE_TEXT, BASE_VOCAB, TEXT_MODEL
from speechlm_jax.vocab import Vocab

CODES_IDENTITY = ("tokenizer", "frame_rate_hz", "codebook_size")


def open_run(run: str | Path, *, batch_size: int = 8) -> Models:
    """The models of a quickstart run, for a few requests; UserError if the folder holds none."""
    return Models(find_run(run), batch_size=batch_size, clip_batch_size=batch_size)


def open_vocab(run: str | Path) -> tuple[Vocab, TextTokenizer]:
    """The vocabulary of a quickstart run, of `speechlm vocab`, or of a converted model.

    Raises:
      UserError: the folder holds none, or a vocabulary and a text vocabulary that it is not of.
    """
    run = Path(run)
    if (run / BASE_VOCAB).is_file():
        vocab = _read_vocab(run / BASE_VOCAB)
        name = BASE_TEXT if (run / BASE_TEXT).is_file() else TEXT_MODEL
        text = TextTokenizer.load(run / name)
        if text.fingerprint != vocab.text_fingerprint:
            raise UserError(
                f"{run / name}: is not the text vocabulary that {BASE_VOCAB} names; copy both anew"
            )
        return vocab, text
    models = open_run(run)
    return models.vocab, models.text


def _read_vocab(path: Path) -> Vocab:
    data = artifacts.read_json(path)
    try:
        return Vocab.from_json(data if isinstance(data, dict) else {})
    except UserError as error:
        raise UserError(f"{path}: is no vocabulary ({error})") from None


def open_codes(run: str | Path) -> dict[str, Any]:
    """Identity of codes: tokenizer, rate, codebook size.

    Args:
      run: a run, a folder of codes, or a folder with a vocabulary.
    """
    folder = Path(run)
    if (folder / BASE_VOCAB).is_file():
        vocab = _read_vocab(folder / BASE_VOCAB)
        values = (vocab.tokenizer_fingerprint, vocab.frame_rate_hz, vocab.codebook_size)
        return dict(zip(CODES_IDENTITY, values, strict=True))
    if (folder / artifacts.MANIFEST).is_file():
        manifest = artifacts.read_manifest(folder)
        if manifest.kind == "codes":
            return {name: manifest.extra[name] for name in CODES_IDENTITY}
    return open_run(run).codes_identity


def choose_voice(voices: Sequence[str], name: str | None, *, seed: int) -> str:
    """The voice of this name, or one drawn by `seed`; UserError names the nearest."""
    if name is None:
        return voices[int(np.random.default_rng((seed, 0x701CE)).integers(len(voices)))]
    if name not in voices:
        near = difflib.get_close_matches(name, voices, n=1, cutoff=0.0)
        raise UserError(
            f"--voice {name}: is none of the run's {len(voices)} voices; did you mean '{near[0]}'?"
        )
    return name


def sayable(models: Models, text: str) -> str:
    """The text as it is said; UserError if it holds no words, or one that cannot be said."""
    said = {word: models.say(word) for word in text.split()}
    for word, its in said.items():
        if its is None and word_to_said(word) is None:
            raise UserError(f"'{text}': '{word}' can be read in several ways; write it in words")
        if its is None:
            raise UserError(
                f"'{text}': the run's vocabulary has no word '{word_to_said(word)}'; use words of "
                "its world, or a run on your own text"
            )
    if not any(said.values()):
        raise UserError(f"'{text}': holds no words; give a text to say")
    return " ".join(filter(None, map(said.get, text.split())))
