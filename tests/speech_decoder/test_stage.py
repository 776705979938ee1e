"""A perfect estimate loses nothing; what is padding counts for nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechlm_jax.speech_decoder.flow import Flow
from speechlm_jax.speech_decoder.stage import make_stage


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    return {
        "mel": jnp.array(random.normal(size=(3, 16, 5)), jnp.float16),
        "codes": jnp.array(random.integers(0, 10, (3, 4))),
        "code_lengths": jnp.array([4, 2, 3]),
        "voices": jnp.array([1, 2, 3]),
    }


def test_a_perfect_estimate_loses_nothing(config, params, batch, monkeypatch):
    """On the path x = (1 - (1 - sigma) t) noise + t mel, dx/dt = mel - (1 - sigma) noise."""
    target = ((batch["mel"].astype(jnp.float32) - 0.5) / 2.0).reshape(3, 8, 10)

    def perfect(self, noisy, time, condition, layout):
        return target

    stage = make_stage(config, lambda rows: iter(()))
    monkeypatch.setattr(Flow, "estimate", perfect)
    out = stage.loss(params, {}, batch, jax.random.key(3))
    assert out.weight_sum == 2 * 9 and abs(float(out.loss_sum)) < 1e-4
    monkeypatch.setattr(Flow, "estimate", lambda *given: 1.0 + perfect(*given))
    wrong = stage.loss(params, {}, batch, jax.random.key(3))
    np.testing.assert_allclose(wrong.loss_sum / wrong.weight_sum, 1.0, rtol=1e-4)


def test_padding_counts_for_nothing_and_draws_follow_the_key(config, params, batch):
    config = dataclasses.replace(config, block_codes=None)  # everything that is seen would count
    stage = make_stage(config, lambda rows: iter(()))
    loss = jax.jit(lambda batch, key: stage.loss(params, {}, batch, key).loss_sum)
    padding = jnp.arange(16)[None, :, None] >= 4 * batch["code_lengths"][:, None, None]
    other = {
        **batch,
        "mel": jnp.where(padding, 9.0, batch["mel"]),
        "codes": jnp.where(padding[:, ::4, 0], 9, batch["codes"]),
    }
    first = loss(batch, jax.random.key(0))
    assert first == loss(other, jax.random.key(0))
    assert first != loss(batch, jax.random.key(1))
