"""The log-mel is librosa's (and so Whisper's); its alignment and floors are what they claim."""

import librosa
import numpy as np
import pytest

from speechlm_jax.audio.mel import MelConfig, mel_to_power, wav_to_mel


def speech_like(seconds: float = 1.5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    loudness = np.repeat(rng.uniform(0.01, 0.3, 30), int(seconds * 16_000) // 30)
    return (rng.normal(size=len(loudness)) * loudness).astype(np.float32)


CONFIGS = [
    MelConfig(),
    MelConfig(num_mels=128),
    MelConfig(sample_rate=22_050, n_fft=1024, win_length=1024, hop_length=256, f_max=8_000.0),
    MelConfig(n_fft=512, win_length=400, f_min=50.0),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_equal_to_librosa(config):
    wav = speech_like()
    expected = librosa.feature.melspectrogram(
        y=wav,
        sr=config.sample_rate,
        n_fft=config.n_fft,
        win_length=config.win_length,
        hop_length=config.hop_length,
        n_mels=config.num_mels,
        fmin=config.f_min,
        fmax=config.f_max,
        pad_mode="reflect",
    )[:, : len(wav) // config.hop_length]
    log = np.log10(np.maximum(expected, 1e-10))
    log = (np.maximum(log, log.max() - 8) + 4) / 4
    mel = wav_to_mel(wav, config)
    assert mel.shape == (len(wav) // config.hop_length, config.num_mels)
    np.testing.assert_allclose(mel, log.T, atol=2e-4)


@pytest.mark.parametrize("samples", [400, 401, 559, 16_000, 16_159])
def test_frames_are_samples_over_hop(samples):
    assert len(wav_to_mel(speech_like()[:samples])) == samples // 160


def test_a_frame_needs_no_sample_after_half_a_window():
    """So a stream can give frame t as soon as sample t * hop + n_fft / 2 is there."""
    config = MelConfig(floor="fixed")
    wav = speech_like()
    whole = wav_to_mel(wav, config)
    for frames in (3, 50, 97):
        heard = (frames - 1) * config.hop_length + config.n_fft // 2 + 1
        changed = wav.copy()
        changed[heard:] = 0.9
        np.testing.assert_array_equal(wav_to_mel(changed, config)[:frames], whole[:frames])


def test_only_the_clip_floor_looks_at_the_whole_clip():
    quiet = speech_like() * 1e-4
    loud_end = quiet.copy()
    loud_end[-4_000:] = 0.9 * np.sign(np.sin(np.arange(4_000)))
    early = slice(0, 50)
    for floor, same in (("fixed", True), ("clip", False)):
        config = MelConfig(floor=floor)
        before, after = wav_to_mel(quiet, config)[early], wav_to_mel(loud_end, config)[early]
        assert np.array_equal(before, after) == same


def test_power_undoes_the_normalisation():
    config = MelConfig()
    wav = speech_like()
    power = librosa.feature.melspectrogram(
        y=wav, sr=16_000, n_fft=400, hop_length=160, n_mels=80, pad_mode="reflect"
    )
    np.testing.assert_allclose(mel_to_power(wav_to_mel(wav, config)), power[:, :-1].T, rtol=1e-2)


def test_too_short_is_an_error():
    with pytest.raises(ValueError, match="too few"):
        wav_to_mel(np.zeros(100, np.float32))
