"""Griffin-Lim keeps the level and the mel frames, and is a function of its seed."""

import numpy as np
import pytest

from speechlm_jax.audio.griffin_lim import mel_to_wav
from speechlm_jax.audio.mel import MelConfig, wav_to_mel
from speechlm_jax.audio.wav import level_db


def vowel(rate: int) -> np.ndarray:
    """Half a second of harmonics whose pitch and loudness move, as a voice's do."""
    seconds = np.arange(rate // 2) / rate
    phase = 2 * np.pi * np.cumsum(140 + 40 * seconds) / rate
    wav = sum(np.sin(k * phase) / k for k in range(1, 20))
    return (0.15 * wav * np.hanning(len(seconds))).astype(np.float32)


@pytest.mark.parametrize(
    "config",
    [MelConfig(), MelConfig(sample_rate=22_050, n_fft=1024, win_length=1024, hop_length=256)],
)
def test_level_length_and_mel_frames_come_back(config):
    wav = vowel(config.sample_rate)
    mel = wav_to_mel(wav, config)
    made = mel_to_wav(mel, config, iterations=24)
    assert len(made) == len(mel) * config.hop_length and made.dtype == np.float32
    assert abs(level_db(made) - level_db(wav)) < 1.5
    loud = mel > mel.max() - 1.0
    assert np.abs(wav_to_mel(made, config) - mel)[loud].mean() < 0.1


def test_the_seed_decides_the_phases():
    mel = wav_to_mel(vowel(16_000))
    first, again, other = (mel_to_wav(mel, seed=seed, iterations=2) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_too_loud_a_mel_is_scaled_not_clipped():
    made = mel_to_wav(wav_to_mel(vowel(16_000)) + 1.0, iterations=2)
    assert 0.9 < np.abs(made).max() < 1.0
