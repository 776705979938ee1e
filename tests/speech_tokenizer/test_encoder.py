"""What a latent may see, by gradient; padding; rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechlm_jax.errors import UserError
from speechlm_jax.nn.param import Functional
from speechlm_jax.speech_tokenizer.encoder import Encoder, EncoderConfig


def test_a_block_sees_itself_and_the_past_and_nothing_later(tokenizer, make_mel):
    """Blocks of 8 encoder frames = 16 mel frames = 2 codes; three blocks."""
    encoder, lengths = tokenizer.encoder, jnp.array([48])

    def latents(mel):
        return jnp.sum(encoder.latents(encoder.states(mel, lengths))[0] ** 2, axis=-1)

    gradient = np.asarray(jax.jit(jax.jacrev(latents))(make_mel(48)))[:, 0]
    seen = np.abs(gradient).sum(-1) > 0
    for code in range(6):
        last_frame = 16 * (code // 2) + 14  # the last encoder frame of the block is centred here
        np.testing.assert_array_equal(seen[code], np.arange(48) <= last_frame)


def test_padding_changes_no_latent(tokenizer, make_mel):
    encoder, mel = tokenizer.encoder, make_mel(48, batch=2)
    latents = jax.jit(lambda mel, lengths: encoder.latents(encoder.states(mel, lengths)))
    lengths = jnp.array([29, 48])
    other = mel.at[0, 30:].set(5.0)  # frame 29 is the last that an encoder frame may read
    before, after = latents(mel, lengths), latents(other, lengths)
    valid = encoder.valid_frames(lengths, 6)
    np.testing.assert_array_equal(valid.sum(axis=1), [3, 6])
    np.testing.assert_allclose(before[valid], after[valid], atol=1e-6)
    assert np.isfinite(latents(mel, jnp.array([0, 48]))).all()


@pytest.mark.parametrize("pool_factor, rate", [(1, 50), (2, 25), (4, 12.5), (8, 6.25)])
def test_the_pool_factor_sets_the_rate(make_config, pool_factor, rate):
    config = make_config(pool_factor=pool_factor)
    assert config.frame_rate_hz == rate
    assert config.encoder.mel_frames_per_code == 2 * pool_factor
    assert config.encoder.block_mel_frames % config.encoder.mel_frames_per_code == 0


def test_a_block_must_hold_whole_codes():
    with pytest.raises(UserError, match="multiple"):
        EncoderConfig(block_frames=10, pool_factor=4)


@pytest.mark.parametrize("causal", [True, False])
def test_what_a_batch_is_padded_to_changes_no_code(make_config, draw, causal):
    """Centred convolutions hear the frame after a clip; a last group is filled up by the clip."""
    config = make_config(causal=causal, tail="pad", block_frames=None).encoder
    encoder = Functional(lambda rngs: Encoder(config, rngs=rngs))
    encoder = encoder.bind(draw(encoder))
    latents = jax.jit(lambda mel, lengths: encoder.latents(encoder.states(mel, lengths)))
    mel = jax.random.normal(jax.random.key(0), (2, 48, 6))
    lengths = jnp.array([29, 48])  # 4 codes: the last one's group ends at 32
    found = latents(mel, lengths)
    other = latents(mel.at[0, 32:].set(5.0), lengths)
    np.testing.assert_allclose(found[0, :4], other[0, :4], atol=1e-5)
    alone = latents(mel[:1, :32], lengths[:1])
    np.testing.assert_allclose(found[0, :4], alone[0], atol=1e-5)
    assert np.abs(found[0, 3] - latents(mel.at[0, 30].set(5.0), lengths)[0, 3]).max() > 1e-3
    assert encoder.valid_frames(lengths, 6).sum(axis=1).tolist() == [4, 6]
    assert [config.num_codes(n) for n in (0, 1, 8, 29, 48)] == [0, 1, 1, 4, 6]


def test_lengths_of_batches_fit_the_table_of_positions():
    released = EncoderConfig(positions="table", block_frames=200, tail="pad")
    assert 3000 % released.mel_multiple == 0 and released.mel_multiple > 400
    assert EncoderConfig(block_frames=32).mel_multiple == 128
    with pytest.raises(UserError, match="a table and rope_theta exclude each other"):
        EncoderConfig(positions="table", rope_theta=10_000.0)
