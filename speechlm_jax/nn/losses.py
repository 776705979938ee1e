"""Losses as sums, so that devices and accumulation steps divide once."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from speechlm_jax.arrays import Array, Bool, Float, Int


def cross_entropy(
    logits: Float[Array, "*batch vocab"], targets: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Negative log-likelihood of each target, in nats."""
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def next_ids(
    ids: Int[Array, "batch length"],
    segments: Int[Array, "batch length"],
    loss_mask: Float[Array, "batch length"],
) -> tuple[Int[Array, "batch length"], Float[Array, "batch length"]]:
    """What each position must predict, and with which weight.

    The mask belongs to the id that is predicted; the last id of a document predicts nothing.
    """
    targets = jnp.roll(ids, -1, axis=1)
    same = (jnp.roll(segments, -1, axis=1) == segments) & (segments > 0)
    weights = jnp.roll(loss_mask, -1, axis=1) * same
    return targets, weights.at[:, -1].set(0.0)


class PackedLoss(NamedTuple):
    """What a language model loses on packed rows, before anything is divided."""

    losses: Float[Array, "batch length"]
    weights: Float[Array, "batch length"]
    targets: Int[Array, "batch length"]

    @property
    def loss_sum(self) -> Float[Array, ""]:
        """Summed loss of all counted ids."""
        return jnp.sum(self.losses * self.weights)

    @property
    def weight_sum(self) -> Float[Array, ""]:
        """Number of counted ids."""
        return jnp.sum(self.weights)

    def over(
        self, chosen: Bool[Array, " batch #length"]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Numerator and denominator of the mean loss over some of the targets."""
        weights = self.weights * chosen
        return jnp.sum(self.losses * weights), jnp.sum(weights)


def packed_loss(
    logits: Float[Array, "batch length vocab"], batch: Mapping[str, Array]
) -> PackedLoss:
    """Next-id loss of packed rows (`ids`, `segments`, `loss_mask`), documents kept apart."""
    targets, weights = next_ids(batch["ids"], batch["segments"], batch["loss_mask"])
    return PackedLoss(cross_entropy(logits, targets), weights, targets)
