"""A stream's frames are the whole clip's, bit by bit, however the samples are cut."""

import numpy as np
import pytest

from speechlm_jax.audio.mel import MelConfig, wav_to_mel
from speechlm_jax.audio.mel_stream import MelStream
from speechlm_jax.errors import UserError

CONFIGS = [
    MelConfig(floor="fixed"),
    MelConfig(floor="running"),
    MelConfig(floor="running", level="peak", num_mels=128),
    MelConfig(sample_rate=22_050, n_fft=1023, win_length=800, hop_length=256, floor="running"),
    MelConfig(floor="fixed", n_fft=64, win_length=64, hop_length=160, num_mels=8),
]


def rising(samples: int) -> np.ndarray:
    """Noise that starts in silence and becomes louder, so that the running maximum moves."""
    rng = np.random.default_rng(samples)
    loudness = np.linspace(0, 0.3, samples) ** 2
    loudness[: samples // 5] = 0
    return (rng.normal(size=samples) * loudness).astype(np.float32)


def streamed(wav: np.ndarray, config: MelConfig, sizes) -> np.ndarray:
    stream, made, start = MelStream(config), [], 0
    while start < len(wav):
        size = next(sizes)
        made.append(stream.push(wav[start : start + size]))
        start += size
    return np.concatenate([*made, stream.finish()])


def always(size):
    while True:
        yield size


def at_random(seed):
    rng = np.random.default_rng(seed)
    while True:
        yield int(rng.choice([0, 1, 3, 159, 160, 161, 400, 5_000]))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("size", [37, 160, 1_279, 1_280, 16_001, 64_000, None])
def test_frames_are_those_of_the_whole_clip(config, size):
    wav = rising(40_123)
    sizes = at_random(1) if size is None else always(size)
    np.testing.assert_array_equal(streamed(wav, config, sizes), wav_to_mel(wav, config))


@pytest.mark.parametrize("config", CONFIGS[1:])
@pytest.mark.parametrize("more", [0, 1, 159, 160, 161, 400])
def test_any_length_ends_as_the_whole_clip_does(config, more):
    wav = rising(max(config.hop_length, config.n_fft // 2 + 1) + more)
    whole = wav_to_mel(wav, config)
    for size in (1, 50, len(wav)):
        np.testing.assert_array_equal(streamed(wav, config, always(size)), whole)


@pytest.mark.parametrize("samples", [0, 1, 159, 160, 200])
def test_what_is_too_short_has_no_frame(samples):
    assert streamed(rising(samples + 10)[:samples], CONFIGS[0], always(7)).shape == (0, 80)


def test_a_frame_is_there_with_the_last_sample_of_its_window():
    config, wav = CONFIGS[0], rising(4_000)
    stream, made = MelStream(config), 0
    for sample in range(len(wav)):
        made += len(stream.push(wav[sample : sample + 1]))
        # frame t is centred on sample t * 160, and its window ends 200 samples later
        assert made == max(0, (sample + 1 - 200) // 160 + 1 if sample >= 200 else 0)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_state_stays_small(config):
    stream = MelStream(config)
    for _ in range(50):
        stream.push(rising(1_000))
        assert len(stream._kept) <= 2 * config.n_fft + config.hop_length


def test_bad_input():
    with pytest.raises(UserError, match="floor: clip depends on the loudest frame"):
        MelStream(MelConfig())
    stream = MelStream(CONFIGS[0])
    with pytest.raises(UserError, match="samples: are int16"):
        stream.push(np.zeros(400, np.int16))
    stream.finish()
    with pytest.raises(UserError, match="is finished"):
        stream.push(rising(400))
