"""Clips of any length to mel frames of their length; what the seed and the neighbours change."""

import numpy as np
import pytest

from speechlm_jax.audio.griffin_lim import mel_to_wav
from speechlm_jax.audio.mel import MelConfig
from speechlm_jax.speech_decoder.synthesis import SpeechDecoder

CLIPS = [np.arange(n, dtype=np.int32) % 10 for n in (4, 0, 3)]
VOICES = [1, 2, 3]


@pytest.fixture(scope="module")
def decoder(config, params):
    return SpeechDecoder(config, params, batch_size=2, multiple=4)


def test_every_clip_gets_the_mel_frames_of_its_codes(decoder):
    mels = decoder.codes_to_mel(CLIPS, voices=VOICES, steps=2, temperature=1.0, seed=5)
    assert [mel.shape for mel in mels] == [(16, 5), (0, 5), (12, 5)]
    assert all(np.isfinite(mel).all() for mel in mels)
    again = decoder.codes_to_mel(CLIPS, voices=VOICES, steps=2, temperature=1.0, seed=5)
    for one, other in zip(mels, again, strict=True):
        np.testing.assert_array_equal(one, other)
    other = decoder.codes_to_mel(CLIPS, voices=VOICES, steps=2, temperature=1.0, seed=6)
    assert not np.allclose(mels[0], other[0])
    assert decoder.codes_to_mel([]) == []


def test_noise_belongs_to_the_clip(config, params, decoder):
    options = {"steps": 2, "temperature": 1.0, "seed": 5}
    together = decoder.codes_to_mel(CLIPS, voices=VOICES, **options)
    apart = SpeechDecoder(config, params, batch_size=3, multiple=8)
    apart = apart.codes_to_mel(CLIPS, voices=VOICES, **options)
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    same = decoder.codes_to_mel([CLIPS[0], CLIPS[0]], voices=1, **options)
    assert not np.allclose(*same), "clips do not share their noise"


def test_without_noise_a_clip_is_independent_of_seed_and_neighbours(decoder):
    mels = decoder.codes_to_mel(CLIPS, voices=VOICES, steps=2, seed=5)
    turned = decoder.codes_to_mel(CLIPS[::-1], voices=VOICES[::-1], steps=2, seed=6)
    for one, other in zip(mels, turned[::-1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    other = decoder.codes_to_mel(CLIPS, voices=VOICES[::-1], steps=2)
    assert not np.allclose(mels[0], other[0]), "the voice counts"


def test_samples_are_those_of_the_mel_frames(decoder):
    """At the rate of the mel frames that the flow was trained on, from the seed and the voice."""
    mel = MelConfig(sample_rate=8_000, n_fft=200, win_length=200, hop_length=80, num_mels=5)
    clips, options = [CLIPS[0], CLIPS[2]], {"voices": [1, 3], "seed": 5}
    wavs = decoder.codes_to_wav(clips, mel=mel, **options)
    assert [len(wav) for wav in wavs] == [len(clip) * 4 * 80 for clip in clips]
    for wav, frames in zip(wavs, decoder.codes_to_mel(clips, **options), strict=True):
        np.testing.assert_array_equal(wav, mel_to_wav(frames, mel, seed=5))
    assert decoder.codes_to_wav([], mel=mel) == []
