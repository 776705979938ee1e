"""Losses of rows add up to the loss of the batch, and a row of padding loses nothing."""

import jax.numpy as jnp
import numpy as np

from speechlm_jax.lm.model import ids_to_logits
from speechlm_jax.lm.row_losses import rows_to_losses
from speechlm_jax.nn.attention import Layout
from speechlm_jax.nn.language_model import LanguageModelConfig, functional
from speechlm_jax.nn.losses import cross_entropy, next_ids
from speechlm_jax.nn.transformer import TransformerConfig

CONFIG = LanguageModelConfig(12, TransformerConfig(1, 8, 2, 2, 4, 12), tied=False)


def test_rows_add_up(draw):
    random = np.random.default_rng(0)
    segments = np.array([[1, 1, 1, 2, 2], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0]], np.int32)
    batch = {
        "ids": random.integers(0, 12, (3, 5)).astype(np.int32),
        "segments": segments,
        "positions": np.array([[0, 1, 2, 0, 1], [0, 1, 2, 3, 0], [0] * 5], np.int32),
        "loss_mask": np.array([[1, 1, 0, 1, 1], [1, 1, 1, 1, 1], [1] * 5], np.float32),
    }
    model = functional(CONFIG)
    params = draw(model)
    losses = list(rows_to_losses(CONFIG, params, [batch, batch]))
    assert [row.num_ids for row in losses] == [2, 3, 0] * 2
    assert losses[2].loss_sum == 0 and losses[:3] == losses[3:]
    arrays = {name: jnp.array(value) for name, value in batch.items()}
    layout = Layout(arrays["segments"], arrays["positions"])
    logits = ids_to_logits(arrays["ids"], model=model, params=params, layout=layout)
    targets, weights = next_ids(arrays["ids"], arrays["segments"], arrays["loss_mask"])
    whole = jnp.sum(weights * cross_entropy(logits, targets))
    np.testing.assert_allclose(sum(r.loss_sum for r in losses[:3]), whole, rtol=1e-5)
