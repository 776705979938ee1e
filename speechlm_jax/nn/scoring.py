"""Log-probabilities of continuations, over full forward passes."""

import jax.numpy as jnp

from speechlm_jax.arrays import Array, Bool, Float, Int
from speechlm_jax.nn.attention import whole
from speechlm_jax.nn.language_model import LanguageModel
from speechlm_jax.nn.losses import cross_entropy


def score(
    model: LanguageModel,
    ids: Int[Array, "batch length"],
    lengths: Int[Array, " batch"],
    counted: Bool[Array, "batch length"],
) -> Float[Array, " batch"]:
    """Log-probability (nats) of the `counted` ids of right-padded rows, given all before them."""
    logits = model(ids, whole(lengths, ids.shape[1]))[:, :-1]
    logprobs = -cross_entropy(logits, ids[:, 1:])
    return jnp.sum(jnp.where(counted[:, 1:], logprobs, 0.0), axis=1)
