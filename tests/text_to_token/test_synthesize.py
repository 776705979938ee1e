"""Requests that match training rows, and the guard on what comes back."""

import numpy as np
import pytest

from speechlm_jax.data.formats import Writer
from speechlm_jax.errors import UserError
from speechlm_jax.nn.inference import Inference
from speechlm_jax.text_to_token.synthesize import SpeechRequest, SynthesisConfig, TextToToken

CONFIG = SynthesisConfig(temperature=0.7, min_frames_per_word=2.0, max_frames_per_word=4.0)


class Scripted(Inference):
    """Says what it is told to, and remembers what it was asked."""

    def __init__(self, replies):
        self.replies, self.asked, self.sampling = replies, [], None

    def generate(self, requests, *, sampling):
        self.asked, self.sampling = list(requests), sampling
        return self.replies


def say(text, vocab, replies, requests):
    scripted = Scripted([vocab.codes_to_ids(np.array(reply, int)).tolist() for reply in replies])
    return TextToToken(scripted, vocab, text, CONFIG).text_to_codes(requests), scripted


def test_a_prompt_is_how_a_training_row_begins(text, vocab):
    request = SpeechRequest("bob has a cat", voice="high", seed=3)
    _, scripted = say(text, vocab, [[1] * 9], [request])
    row = Writer(vocab, text).voiced_tts([1] * 9, request.text, request.voice)
    ids = [*row.inputs.tolist(), *row.targets.tolist()]
    asked = scripted.asked[0]
    assert asked.prompt == ids[: len(asked.prompt)]
    assert ids[len(asked.prompt) :] == [
        *vocab.codes_to_ids(np.array([1] * 9)).tolist(), vocab["end_of_speech"], vocab["eos"]
    ]  # fmt: skip
    assert asked.stops == (vocab["end_of_speech"],) and asked.seed == 3
    assert set(asked.allowed) == {
        vocab["end_of_speech"],
        *vocab.codes_to_ids(np.arange(16)).tolist(),
    }
    assert scripted.sampling.temperature == 0.7


@pytest.mark.parametrize("frames, kept", [(0, False), (3, False), (4, True), (8, True), (9, False)])
def test_speech_of_an_unlikely_length_is_dropped(text, vocab, frames, kept):
    """Two words of 2 to 4 frames each."""
    said = np.arange(frames) % 16
    codes, _ = say(text, vocab, [said, [1] * 8], [SpeechRequest("a cat", "low", 0)] * 2)
    np.testing.assert_array_equal(codes[0], said if kept else [])
    assert len(codes[1]) == 8, "a neighbour is kept"


@pytest.mark.parametrize("words", [1, 15, 16, 40])
def test_speech_that_never_ends_is_longer_than_the_guard_allows(text, vocab, words):
    request = SpeechRequest("cat " * words, "low", 0)
    _, scripted = say(text, vocab, [[]], [request])
    assert scripted.asked[0].max_new > 4 * words
    codes, _ = say(text, vocab, [[1] * scripted.asked[0].max_new], [request])
    assert len(codes[0]) == 0


def test_an_unknown_voice_is_named(text, vocab):
    with pytest.raises(UserError, match="'carol'"):
        say(text, vocab, [[]], [SpeechRequest("bob", voice="carol", seed=0)])
