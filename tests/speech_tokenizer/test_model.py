"""A stream equals the whole clip; the reader depends on codes alone; padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechlm_jax.errors import UserError
from speechlm_jax.nn.layers import sinusoids
from speechlm_jax.speech_tokenizer.stage import functional

CASES = [(1, 10_000.0), (2, None), (4, 10_000.0), (8, None)]


@pytest.mark.parametrize("pool_factor, rope_theta", CASES)
def test_block_by_block_equals_the_whole_clip(
    make_config, params, variables, make_mel, pool_factor, rope_theta
):
    """50, 25, 12.5 and 6.25 Hz; with rotary positions and with sinusoids."""
    config = make_config(pool_factor=pool_factor, rope_theta=rope_theta)
    tokenizer = functional(config).bind(params, variables)
    mel, size = make_mel(48, batch=2), config.encoder.block_mel_frames
    whole = jax.jit(tokenizer.mel_to_codes)(mel, jnp.array([48, 48]))
    carry = tokenizer.encoder.start(batch=2, max_mel_frames=48)
    step, codes = jax.jit(tokenizer.step), []
    for first in range(0, 48, size):
        carry, part = step(carry, mel[:, first : first + size])
        codes.append(part)
    np.testing.assert_array_equal(jnp.concatenate(codes, axis=1), whole)
    assert whole.shape == (2, 24 // pool_factor)
    assert len(np.unique(whole)) > 2


def test_a_tokenizer_made_from_whisper_streams_as_it_reads(make_config, variables, make_mel, draw):
    """Tables of positions, layer norms and no projection; two blocks at a time too."""
    config = made_from_whisper(make_config)
    model = functional(config)
    codebook = jax.random.normal(jax.random.key(3), (32, config.encoder.embed))
    quantizer = {**variables["quantizer"], "codebook": 3 * codebook, "ema_sum": codebook}
    table = {"table": sinusoids(jnp.arange(24.0), config.encoder.embed)}
    tokenizer = model.bind(draw(model), {"quantizer": quantizer, "encoder": table})
    mel = make_mel(48, batch=2)
    whole = jax.jit(tokenizer.mel_to_codes)(mel, jnp.array([48, 48]))
    step = jax.jit(tokenizer.step)
    carry, first = step(tokenizer.encoder.start(batch=2, max_mel_frames=48), mel[:, :32])
    _, last = step(carry, mel[:, 32:])
    np.testing.assert_array_equal(jnp.concatenate([first, last], axis=1), whole)
    assert len(np.unique(whole)) > 2
    with pytest.raises(UserError, match="64; max_frames, 24, ends a stream at 48"):
        tokenizer.encoder.start(batch=1, max_mel_frames=64)
    with pytest.raises(UserError, match="25 positions: the model has a table of 24"):
        jax.eval_shape(tokenizer.mel_to_codes, make_mel(50), jnp.array([50]))


def made_from_whisper(make_config, **changes):
    """The tiny config with Whisper's blocks and positions, and a codebook as wide as they are."""
    config = make_config(
        block_kind="whisper", positions="table", max_frames=24, rope_theta=None, latent_dim=None,
        norm_before_pooling=False, tail="pad",
    )  # fmt: skip
    return dataclasses.replace(config, has_ctc=False, **changes)


@pytest.mark.parametrize("frames", [0, 1, 7, 37, 100])
def test_a_step_takes_whole_blocks(tokenizer, make_mel, frames):
    carry = tokenizer.encoder.start(batch=1, max_mel_frames=160)
    with pytest.raises(ValueError, match=f"{frames} mel frames: a step takes whole blocks of 16"):
        jax.eval_shape(tokenizer.step, carry, jnp.zeros((1, frames, 6)))


def test_a_stream_past_its_room_is_refused_and_never_wrong(tokenizer, make_mel):
    carry = tokenizer.encoder.start(batch=1, max_mel_frames=30)  # two blocks of 16
    step, mel = jax.jit(tokenizer.step), make_mel(16)
    for _ in range(2):
        carry, codes = step(carry, mel)
        assert (codes >= 0).all()
    with pytest.raises(ValueError, match=r"has 48 mel frames with these; there is room for 32"):
        tokenizer.step(carry, mel)
    assert (step(carry, mel)[1] == -1).all()


def test_what_cannot_stream_says_so(make_config):
    for changes in ({"causal": False}, {"block_frames": None}):
        model = functional(make_config(**changes))
        with pytest.raises(UserError, match="only an encoder with causal convolutions and blocks"):
            model.bind(model.shapes, model.variable_shapes).encoder.start(
                batch=1, max_mel_frames=16
            )


def test_bfloat16_computes_in_it_and_measures_distances_in_float32(config, params, variables):
    half = functional(dataclasses.replace(config, dtype="bfloat16")).bind(params, variables)
    mel, lengths = jnp.ones((1, 32, 6)), jnp.array([32])
    states = jax.eval_shape(half.encoder.states, mel, lengths)
    assert states.dtype == jnp.bfloat16
    out = jax.eval_shape(lambda *given: half(*given), mel, lengths)
    assert out.latents.dtype == out.ctc.dtype == jnp.float32 and out.memory.dtype == jnp.bfloat16
    read = jax.eval_shape(half.read, out.memory, out.frame_mask, jnp.ones((1, 2), int), lengths)
    assert read.dtype == jnp.float32
    carry, _ = jax.eval_shape(
        half.step, half.encoder.start(batch=1, max_mel_frames=32), mel[:, :16]
    )
    assert carry.conv1.dtype == carry.cache.k[0].dtype == jnp.bfloat16


def test_without_a_quantizer_there_are_no_codes(make_config, draw):
    config = dataclasses.replace(made_from_whisper(make_config), quantizer=None)
    model = functional(config)
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), model.variable_shapes)
    plain = model.bind(draw(model), variables)
    with pytest.raises(UserError, match="this model has none, so it makes no codes"):
        jax.eval_shape(plain.mel_to_codes, jnp.ones((1, 16, 6)), jnp.array([16]))
    out = jax.eval_shape(lambda *given: plain(*given), jnp.ones((1, 16, 6)), jnp.array([16]))
    assert out.quantized is None and out.ctc is None and out.memory.shape == (1, 2, 16)


def test_the_reader_hears_codes_alone(tokenizer, make_mel):
    """Codes of padding, and what lies beyond the codes, change nothing."""
    output = jax.jit(lambda *given: tokenizer(*given))(make_mel(48, batch=2), jnp.array([33, 48]))
    np.testing.assert_array_equal(output.frame_mask.sum(axis=1), [4, 6])
    codes = jnp.where(output.frame_mask, output.quantized.codes, 0)
    memory = jax.jit(tokenizer.codes_to_memory)(codes, output.frame_mask)
    np.testing.assert_allclose(
        memory[output.frame_mask], output.memory[output.frame_mask], atol=1e-5
    )
    assert output.early_ctc.shape == (2, 24, 257) and output.ctc.shape == (2, 6, 8)


def test_the_attention_decoder_is_causal_and_reads_only_real_frames(tokenizer):
    random = jax.random.key(0)
    memory = jax.random.normal(random, (1, 6, 16))
    frame_mask = jnp.arange(6)[None] < 4
    ids, lengths = jnp.array([[7, 1, 2, 3]]), jnp.array([4])
    read = jax.jit(lambda memory, ids: tokenizer.read(memory, frame_mask, ids, lengths))
    plain = read(memory, ids)
    np.testing.assert_array_equal(plain, read(memory.at[:, 4:].add(1.0), ids))
    assert not np.allclose(plain, read(memory.at[:, 3].add(1.0), ids))
    changed = np.abs(plain - read(memory, ids.at[0, 2].set(5)))[0].max(-1) > 0
    np.testing.assert_array_equal(changed, [False, False, True, True])


def test_axes_are_the_tree_of_the_parameters(config, params):
    axes = functional(config).axes
    assert jax.tree.structure(axes, is_leaf=lambda x: isinstance(x, tuple)) == jax.tree.structure(
        params
    )
    jax.tree.map(
        lambda a, p: np.testing.assert_equal(len(a), p.ndim),
        axes, params, is_leaf=lambda x: isinstance(x, tuple),
    )  # fmt: skip


def test_latents_and_codebook_must_be_equally_wide(config):
    narrow = dataclasses.replace(config.quantizer, codebook_dim=4)
    with pytest.raises(UserError, match="latent_dim"):
        dataclasses.replace(config, quantizer=narrow)
