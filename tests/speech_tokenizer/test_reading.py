"""Clips in any order, batch and padding give the same codes and ids; greedy CTC."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechlm_jax.speech_tokenizer.reading import Transcriber, collapse

LENGTHS = (40, 7, 16, 33, 48, 24, 41)


@pytest.fixture(scope="module")
def mels(make_mel):
    return [np.asarray(make_mel(n, seed=i)[0]) for i, n in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def reader(config, params, variables):
    return Transcriber(config, params, variables, batch_size=3)


def test_codes_depend_on_the_clip_alone(reader, tokenizer, mels):
    codes = reader.mels_to_codes(mels)
    assert [len(clip) for clip in codes] == [n // 8 for n in LENGTHS]
    for one, other in zip(codes[::-1], reader.mels_to_codes(mels[::-1]), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(reader.mels_to_codes(mels[3:4])[0], codes[3])
    whole = jax.jit(tokenizer.mel_to_codes)(jnp.array(mels[4])[None], jnp.array([48]))
    np.testing.assert_array_equal(codes[4], whole[0])
    assert reader.mels_to_codes([]) == []


def test_ids_depend_on_the_codes_alone(reader, mels):
    codes = reader.mels_to_codes(mels)
    said = reader.codes_to_ids(codes)
    assert reader.codes_to_ids(codes[::-1]) == said[::-1]
    assert reader.codes_to_ids(codes[2:3]) == said[2:3]
    assert said[1] == [] and any(said)
    assert all(0 <= i < 7 for ids in said for i in ids)


def test_greedy_ctc_merges_repeats_then_drops_blanks():
    best = np.array([0, 0, 9, 0, 1, 1, 9, 9, 2])
    assert collapse(best, blank=9) == [0, 0, 1, 2]
    assert collapse(np.array([9, 9]), blank=9) == []
    assert collapse(np.zeros(0, int), blank=9) == []
