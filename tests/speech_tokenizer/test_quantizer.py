"""The codebook against a numpy loop over batches; straight-through gradients; the start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from speechlm_jax.speech_tokenizer.quantizer import Quantizer, QuantizerConfig

SIZE, DIM = 6, 3
CONFIG = QuantizerConfig(
    codebook_size=SIZE, codebook_dim=DIM, ema_decay=0.8, dead_code_threshold=0.3
)


@pytest.fixture(scope="module")
def codebook():
    return np.random.default_rng(0).normal(size=(SIZE, DIM)).astype(np.float32)


def make(codebook, *, start_step=0, updates=0):
    config = QuantizerConfig(**{**vars(CONFIG), "start_step": start_step})
    quantizer = nnx.eval_shape(lambda: Quantizer(config, rngs=nnx.Rngs(0)))
    state = {
        "codebook": jnp.array(codebook),
        "ema_count": jnp.ones(SIZE),
        "ema_sum": jnp.array(codebook),
        "updates": jnp.int32(updates),
    }
    return nnx.merge(nnx.split(quantizer)[0], state)


def batch(seed):
    """Latents near three of the entries only, so that the others die; a third is padding."""
    random = np.random.default_rng(seed)
    latents = random.normal(size=(2, 9, DIM)).astype(np.float32) / 4
    latents[0, :, 0] += 2.0
    return latents, random.random((2, 9)) < 0.67


def nearest(latents, codebook):
    return np.argmin(((latents[..., None, :] - codebook) ** 2).sum(-1), axis=-1)


def test_codes_are_the_nearest_entries(codebook):
    latents, _ = batch(1)
    quantizer = make(codebook)
    np.testing.assert_array_equal(quantizer.nearest(jnp.array(latents)), nearest(latents, codebook))
    codes = jnp.arange(SIZE)[None]
    np.testing.assert_array_equal(quantizer.nearest(quantizer.lookup(codes)), codes)


def test_moving_averages_equal_a_loop_over_batches(codebook):
    quantizer = make(codebook)
    count, total = np.ones(SIZE), codebook.astype(np.float64)
    book, restarted = codebook.astype(np.float64), 0
    for step in range(8):
        latents, valid = batch(step)
        codes = nearest(latents, book)
        for entry in range(SIZE):
            mine = latents[valid & (codes == entry)]
            count[entry] = 0.8 * count[entry] + 0.2 * len(mine)
            total[entry] = 0.8 * total[entry] + 0.2 * mine.sum(axis=0)
        new = quantizer.updated(
            jnp.array(latents), jnp.array(codes), jnp.array(valid), jax.random.key(step)
        )
        for entry in np.flatnonzero(count < 0.3):
            fresh = np.asarray(new["codebook"])[entry]
            assert (np.abs(latents[valid] - fresh).sum(-1) < 1e-6).any(), "a valid latent"
            count[entry], total[entry] = 1.0, fresh
            restarted += 1
        book = total / count[:, None]
        np.testing.assert_allclose(new["ema_count"], count, rtol=1e-5)
        np.testing.assert_allclose(new["ema_sum"], total, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(new["codebook"], book, rtol=1e-4, atol=1e-5)
        assert new["updates"] == step + 1
        for name, value in new.items():
            getattr(quantizer, name)[...] = value
    assert restarted >= 2


def test_gradients_pass_straight_through_and_never_reach_the_codebook(codebook):
    latents, _ = batch(2)
    weights = jnp.array(np.random.default_rng(3).normal(size=latents.shape), jnp.float32)

    def through(latents, book):
        quantizer = make(codebook)
        quantizer.codebook[...] = book
        return jnp.sum(quantizer(latents).vectors * weights)

    for_latents, for_book = jax.grad(through, argnums=(0, 1))(
        jnp.array(latents), jnp.array(codebook)
    )
    np.testing.assert_allclose(for_latents, weights, rtol=1e-6)
    assert not np.any(for_book)
    quantized = make(codebook)(jnp.array(latents))
    np.testing.assert_allclose(quantized.vectors, codebook[nearest(latents, codebook)], atol=1e-6)


def test_commitment_pulls_latents_to_their_entries(codebook):
    latents, _ = batch(4)
    chosen = codebook[nearest(latents, codebook)]
    commitment = make(codebook)(jnp.array(latents)).commitment
    np.testing.assert_allclose(commitment, ((latents - chosen) ** 2).mean(-1), rtol=1e-5)
    gradient = jax.grad(lambda x: make(codebook)(x).commitment.sum())(jnp.array(latents))
    np.testing.assert_allclose(gradient, 2 * (latents - chosen) / DIM, rtol=1e-4, atol=1e-6)


def test_before_the_start_latents_pass_and_fill_the_codebook(codebook):
    latents, valid = batch(5)
    early = make(codebook, start_step=8)(jnp.array(latents))
    np.testing.assert_array_equal(early.vectors, latents)
    assert not np.any(early.commitment)
    quantizer = make(codebook, start_step=8)
    for step in range(8):
        latents, valid = batch(step)
        codes = quantizer.nearest(jnp.array(latents))
        new = quantizer.updated(jnp.array(latents), codes, jnp.array(valid), jax.random.key(step))
        for name, value in new.items():
            getattr(quantizer, name)[...] = value
    everything = np.concatenate([x[v] for x, v in map(batch, range(8))])
    distances = np.abs(everything[None] - np.asarray(new["codebook"])[:, None]).sum(-1)
    assert (distances.min(axis=1) < 1e-6).all(), "every entry is a valid latent of these batches"
    np.testing.assert_array_equal(new["ema_count"], 1.0)
    np.testing.assert_array_equal(new["ema_sum"], new["codebook"])
    assert quantizer(jnp.array(latents)).commitment.sum() > 0
