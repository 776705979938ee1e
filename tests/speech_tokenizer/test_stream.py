"""A stream gives the codes of the whole file, whatever its chunks, as soon as they can be known."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from speechlm_jax.audio.mel_config import MelConfig
from speechlm_jax.nn.layers import sinusoids
from speechlm_jax.speech_tokenizer.reading import Transcriber
from speechlm_jax.speech_tokenizer.stage import functional
from speechlm_jax.speech_tokenizer.stream import Stream, _programs
from speechlm_jax.speech_tokenizer.windows import WindowConfig

CHUNKS = (37, 160, 1_279, 1_280, 16_001, 64_000, 10_000_000)
FIXED = MelConfig(num_mels=6, floor="fixed")


@pytest.fixture(scope="module")
def make_reader(make_config, variables, draw):
    def make(**encoder) -> Transcriber:
        config = dataclasses.replace(make_config(**encoder), mel=FIXED)
        table = {"encoder": {"table": sinusoids(jnp.arange(float(config.encoder.max_frames)), 16)}}
        held = {**variables, **(table if config.encoder.positions == "table" else {})}
        return Transcriber(config, draw(functional(config)), held, batch_size=4)

    return make


@pytest.fixture(scope="module")
def wav():
    """100 s of noise whose colour and level change."""
    rng = np.random.default_rng(0)
    levels = np.repeat(10.0 ** rng.uniform(-3, -0.5, 1_000), 1_600)
    noise = rng.normal(size=1_600_000) * levels
    return np.clip(noise + np.roll(noise, 1) * 0.9, -1, 1).astype(np.float32)


def streamed(stream: Stream, wav: np.ndarray, chunk: int) -> np.ndarray:
    parts = [stream.push(wav[i : i + chunk]) for i in range(0, len(wav), chunk)]
    return np.concatenate([*parts, stream.finish()])


CASES = [
    (pool, theta, context) for pool in (1, 2, 4, 8) for theta in (None, 1e4) for context in (0, 4)
]


@pytest.mark.slow
@pytest.mark.parametrize("pool_factor, rope_theta, context", CASES)
def test_codes_of_100_s_are_those_of_the_file(make_reader, wav, pool_factor, rope_theta, context):
    reader = make_reader(pool_factor=pool_factor, rope_theta=rope_theta)
    window = WindowConfig(context_seconds=float(context))
    whole = reader.wav_to_codes(wav, window)
    for chunk in CHUNKS:
        stream = Stream(reader, window)
        np.testing.assert_array_equal(streamed(stream, wav, chunk), whole)
        assert stream.mel_frames_encoded <= (1 + context / (30 - context)) * len(wav) / 160


@pytest.mark.parametrize("pool_factor, rope_theta", [(1, 1e4), (8, None)])
@pytest.mark.parametrize("context", [0.0, 0.64])
def test_codes_are_those_of_the_file(make_reader, wav, pool_factor, rope_theta, context):
    """Windows of 2.1 s end amid a block and amid a code."""
    reader = make_reader(pool_factor=pool_factor, rope_theta=rope_theta)
    window, wav = WindowConfig(2.1, context), wav[:120_123]
    whole = reader.wav_to_codes(wav, window)
    assert len(np.unique(whole)) > 2
    stream = Stream(reader, window)
    _, step = _programs(reader.config, 210)
    for chunk in (160, 1_279, 16_001, len(wav)):
        before = stream.mel_frames_encoded
        np.testing.assert_array_equal(streamed(stream, wav, chunk), whole)
        encoded = stream.mel_frames_encoded - before
        assert encoded <= (1 + context / (2.1 - context)) * len(wav) / 160
    assert step._cache_size() == 1, "one compiled shape"


def test_a_code_comes_with_the_last_sample_that_its_block_needs(make_reader, wav):
    reader = make_reader()
    stream, size = Stream(reader), 16 * 160
    last = size - 160 + 200  # what the block's last frame sees
    assert not len(stream.push(wav[: last - 1])) and len(stream.push(wav[last - 1 : last])) == 2
    assert len(stream.push(wav[last : last + size - 1])) == 0
    held = stream.state_bytes
    assert len(stream.push(wav[last + size - 1 : 3 * size])) == 2
    assert stream.state_bytes == held and len(stream.finish()) == 2
    assert len(stream.finish()) == 0 and len(stream.push(np.zeros(0, np.float32))) == 0


@pytest.mark.parametrize("samples", [120_123, 33_601, 100])
def test_a_last_partial_group_has_a_code_in_a_stream_as_in_a_file(make_reader, wav, samples):
    """With a table of positions, whose last row a window reaches."""
    reader = make_reader(
        pool_factor=4, rope_theta=None, positions="table", max_frames=105, tail="pad"
    )
    window, wav = WindowConfig(2.1), wav[:samples]
    whole = reader.wav_to_codes(wav, window)
    ends = [min(33_600, samples - first) for first in range(0, samples, 33_600)]
    assert len(whole) == sum(-(-end // 1_280) for end in ends)
    for chunk in (1_279, len(wav)):
        np.testing.assert_array_equal(streamed(Stream(reader, window), wav, chunk), whole)


def test_a_stream_of_a_tokenizer_with_whispers_floor_follows_the_loudest_so_far(make_reader, wav):
    reader = make_reader()
    by_floor = {}
    for floor in ("clip", "running"):
        reader.config = dataclasses.replace(reader.config, mel=MelConfig(num_mels=6, floor=floor))
        by_floor[floor] = streamed(Stream(reader), wav[:50_000], 1_600)
    np.testing.assert_array_equal(by_floor["clip"], by_floor["running"])
