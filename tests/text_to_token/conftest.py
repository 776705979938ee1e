"""A tiny vocabulary with two voices, shared by the tests of this room."""

import pytest

from speechlm_jax.text import TextTokenizer
from speechlm_jax.vocab import Vocab


@pytest.fixture(scope="session")
def text():
    return TextTokenizer.train(["anna lives in paris", "bob has a cat"], kind="word")


@pytest.fixture(scope="session")
def vocab(text):
    return Vocab(text.size, 16, 12.5, text.fingerprint, "tokenizer", voices=("low", "high"))
