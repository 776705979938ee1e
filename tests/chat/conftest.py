"""A writer of ids and a scripted language model, shared by the tests of this room."""

import pytest

from speechlm_jax.data.formats import Writer
from speechlm_jax.nn.inference import Inference
from speechlm_jax.text import TextTokenizer
from speechlm_jax.vocab import Vocab


class Scripted(Inference):
    """Says what it is told to, call by call, and remembers what it was asked."""

    def __init__(self, *calls):
        self.calls, self.asked = list(calls), []

    def generate(self, requests, *, sampling):
        self.asked.append(list(requests))
        return self.calls.pop(0)


@pytest.fixture(scope="session")
def writer():
    text = TextTokenizer.train(["it is paris", "it is rome"], kind="word")
    return Writer(Vocab(text.size, 16, 12.5, text.fingerprint, "tokenizer"), text)


@pytest.fixture
def scripted():
    return Scripted
