"""Checks of requests to the text-to-token model: a voice by name, and words that it knows."""

import difflib
from collections.abc import Sequence

import numpy as np

from speechlm_jax.bundle.models import Bundle
from speechlm_jax.data.text_norm import word_to_said
from speechlm_jax.errors import UserError


def choose_voice(voices: Sequence[str], name: str | None, *, seed: int) -> str:
    """Returns `name`, or a voice drawn by `seed` if it is None.

    Raises:
      UserError: there is no such voice; the message suggests the nearest.
    """
    if name is None:
        return voices[int(np.random.default_rng((seed, 0x701CE)).integers(len(voices)))]
    if name not in voices:
        near = difflib.get_close_matches(name, voices, n=1, cutoff=0.0)
        raise UserError(
            f"--voice {name}: is none of the run's {len(voices)} voices; did you mean '{near[0]}'?"
        )
    return name


def sayable(models: Bundle, text: str) -> str:
    """Returns the text as it is spoken.

    Raises:
      UserError: the text has no words, or one that cannot be said.
    """
    said = {word: models.say(word) for word in text.split()}
    for word, its in said.items():
        if its is None and word_to_said(word) is None:
            raise UserError(f"'{text}': '{word}' can be read in several ways; write it in words")
        if its is None:
            raise UserError(
                f"'{text}': the run's vocabulary has no word '{word_to_said(word)}'; use words "
                "that it was trained on, or a run on your own text"
            )
    if not any(said.values()):
        raise UserError(f"'{text}': holds no words; give a text to say")
    return " ".join(filter(None, map(said.get, text.split())))
