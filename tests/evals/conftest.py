"""A tiny vocabulary, shared by the tests of this folder."""

import pytest

from speechlm_jax.data.formats import Writer
from speechlm_jax.text import TextTokenizer
from speechlm_jax.vocab import Vocab

LINES = [
    "what is the city of anna it is paris",
    "what is the city of bob it is rome",
    "in oslo",
]


@pytest.fixture(scope="session")
def writer():
    tokenizer = TextTokenizer.train(LINES, kind="word")
    vocab = Vocab(
        text_size=tokenizer.size,
        codebook_size=16,
        frame_rate_hz=12.5,
        text_fingerprint=tokenizer.fingerprint,
        tokenizer_fingerprint="test",
    )
    return Writer(vocab, tokenizer)
