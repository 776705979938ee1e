"""A stream equals the whole clip; the reader depends on codes alone; padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechlm_jax.errors import UserError
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
