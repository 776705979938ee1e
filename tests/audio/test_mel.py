"""The log-mel is librosa's (and so Whisper's); its alignment and floors are what they claim."""

import librosa
import numpy as np
import pytest

from speechlm_jax import config as configs
from speechlm_jax.audio.mel import MelConfig, as_samples, mel_to_power, wav_to_mel
from speechlm_jax.audio.wav import read_wav
from speechlm_jax.errors import UserError


def speech_like(seconds: float = 1.5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    loudness = np.repeat(rng.uniform(0.01, 0.3, 30), int(seconds * 16_000) // 30)
    return (rng.normal(size=len(loudness)) * loudness).astype(np.float32)


@pytest.fixture(scope="module")
def real_clips(real_data) -> list[np.ndarray]:
    """20 of them."""
    found = sorted(real_data("speech_librispeech_201spk").glob("**/*.flac"))[:20]
    assert len(found) == 20
    return [read_wav(path, sample_rate=16_000) for path in found]


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


@pytest.mark.parametrize("floor", ["clip", "running"])
@pytest.mark.parametrize("db", [-20, -12, 6])
def test_level_peak_does_not_tell_how_loud_a_clip_is(floor, db):
    """Whisper's frames shift by the change of level, all alike; those of level peak stay."""
    wav = speech_like()
    wav[:4_000] = 0  # digital silence, too; where it ends, a frame may be too weak to be lifted
    changed = wav * 10 ** (db / 20)
    config = MelConfig(floor=floor, level="peak")
    mel = wav_to_mel(wav, config)
    same = np.r_[0:23, 28 : len(mel)]
    np.testing.assert_allclose(wav_to_mel(changed, config)[same], mel[same], atol=1e-5)
    assert mel.max() == pytest.approx(1.375) and mel.min() >= -0.6251
    kept = wav_to_mel(wav), wav_to_mel(changed)
    loud = kept[0] > kept[0].max() - 1
    np.testing.assert_allclose(kept[1][loud] - kept[0][loud], db / 40, atol=1e-5)


def test_level_peak_leaves_silence_silent():
    for loudness in (0.0, 1e-7):
        mel = wav_to_mel(speech_like() * np.float32(loudness), MelConfig(level="peak"))
        assert mel.max() < 0.5


def test_running_floor_is_that_of_the_clip_heard_so_far():
    wav = speech_like() * np.linspace(0.001, 1, 24_000, dtype=np.float32)
    wav[15_000:] = 0
    mel = wav_to_mel(wav, MelConfig(floor="running"))
    for frames in (20, 60, 90):
        heard = wav_to_mel(wav[: frames * 160 + 200], MelConfig())
        assert mel[frames - 1].min() >= heard[:frames].max() - 2 - 1e-6
        np.testing.assert_allclose(mel[frames - 1], heard[frames - 1], atol=0.2)
    np.testing.assert_array_equal(mel[-1], wav_to_mel(wav, MelConfig())[-1])


def test_level_peak_needs_a_maximum():
    with pytest.raises(UserError, match="level: peak needs a maximum"):
        MelConfig(floor="fixed", level="peak")


def test_level_kept_is_no_part_of_a_fingerprint():
    """Feature folders and tokenizers that were made before it keep their identity."""
    old = {key: value for key, value in configs.to_json(MelConfig()).items() if key != "level"}
    assert configs.fingerprint(MelConfig()) == configs.fingerprint(old)
    assert configs.fingerprint(MelConfig(level="peak")) != configs.fingerprint(old)
    assert configs.from_json(MelConfig, old) == MelConfig()


def test_integers_are_refused():
    with pytest.raises(UserError, match="samples: are int16; give floats"):
        as_samples(np.ones(16_000, np.int16))


@pytest.mark.parametrize("num_mels", [80, 128])
@pytest.mark.parametrize("padded", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_equal_to_the_feature_extractor_of_whisper(real_clips, num_mels, padded):
    """On 20 real clips: `SPEECHLM_DATA` names the folder that holds them."""
    transformers = pytest.importorskip("transformers", reason="needs the `oracles` extra")
    extractor = transformers.WhisperFeatureExtractor(feature_size=num_mels)
    for wav in real_clips:
        wav = np.pad(wav, (0, max(0, 480_000 - len(wav)))) if padded else wav
        mel = wav_to_mel(wav, MelConfig(num_mels=num_mels))
        exact = extractor._np_extract_fbank_features(wav[None], "cpu")[0].T  # in float64
        np.testing.assert_allclose(mel, exact, rtol=0, atol=5e-5)
        if num_mels == 80:  # at 128 bins its path by torch, float32, is itself up to 7e-5 off
            said = extractor(wav, sampling_rate=16_000, padding=False, return_tensors="np")
            np.testing.assert_allclose(mel, said.input_features[0].T, rtol=0, atol=5e-5)


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
