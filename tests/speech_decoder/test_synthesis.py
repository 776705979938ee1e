"""Clips of any length to mel frames of their length."""

import numpy as np

from speechlm_jax.speech_decoder.synthesis import SpeechDecoder


def test_every_clip_gets_the_mel_frames_of_its_codes(config, params):
    decoder = SpeechDecoder(config, params, batch_size=2, multiple=4)
    clips = [np.arange(n, dtype=np.int32) % 10 for n in (4, 0, 3)]
    mels = decoder.codes_to_mel(clips, voices=[1, 2, 3], steps=2, seed=5)
    assert [mel.shape for mel in mels] == [(16, 5), (0, 5), (12, 5)]
    assert all(np.isfinite(mel).all() for mel in mels)
    again = decoder.codes_to_mel(clips, voices=[1, 2, 3], steps=2, seed=5)
    for one, other in zip(mels, again, strict=True):
        np.testing.assert_array_equal(one, other)
    other = decoder.codes_to_mel(clips, voices=[1, 2, 3], steps=2, seed=6)
    assert not np.allclose(mels[0], other[0])
    assert decoder.codes_to_mel([]) == []
