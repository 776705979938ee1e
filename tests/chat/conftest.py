"""A writer of ids and a scripted language model, shared by the tests of this room."""

import dataclasses

import pytest

from speechlm_jax.data.formats import Writer
from speechlm_jax.nn.inference import Inference
from speechlm_jax.text import TextTokenizer
from speechlm_jax.vocab import Vocab


class Scripted(Inference):
    """Says what it is told to, call by call, and remembers what it was asked.

    A prompt is remembered with what its session holds.
    """

    slots = 2

    def __init__(self, *calls):
        self.calls, self.asked, self.closed = list(calls), [], 0

    def forget(self, session):
        self.closed += 1

    def generate(self, requests, *, sampling):
        replies = self.calls.pop(0)
        whole = [[*request.session.ids, *request.prompt] for request in requests]
        for request, ids, reply in zip(requests, whole, replies, strict=True):
            request.session.kept.ids = [*ids, *reply]
        pairs = zip(requests, whole, strict=True)
        self.asked.append([dataclasses.replace(asked, prompt=ids) for asked, ids in pairs])
        return replies


@pytest.fixture(scope="session")
def writer():
    text = TextTokenizer.train(["it is paris", "it is rome"], kind="word")
    return Writer(Vocab(text.size, 16, 12.5, text.fingerprint, "tokenizer"), text)


@pytest.fixture
def scripted():
    return Scripted
