"""Ids -> logits: the speech-text language model as a function of its parameters."""

import jax.numpy as jnp

from speechlm_jax.arrays import Array, Float, Int, PyTree
from speechlm_jax.nn.attention import Layout, whole
from speechlm_jax.nn.param import Functional


def ids_to_logits(
    ids: Int[Array, "batch length"],
    *,
    model: Functional,
    params: PyTree,
    layout: Layout | None = None,
) -> Float[Array, "batch length vocab"]:
    """Turns ids into logits of the next id at each position, in float32.

    Text and speech ids are treated alike (paper, section 2.3: one decoder-only model over the joint
    vocabulary).

    Args:
      model: `nn.language_model.functional(config)`; `params`: its parameters.
      layout: segments and positions of packed rows; None takes each row as one whole document.
    """
    if layout is None:
        layout = whole(jnp.full(ids.shape[0], ids.shape[1], jnp.int32), ids.shape[1])
    return model.bind(params)(ids, layout)
