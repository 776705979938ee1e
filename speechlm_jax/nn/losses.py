"""Losses as sums, so that devices and accumulation steps divide once."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from speechlm_jax.arrays import Array, Bool, Float, Int
from speechlm_jax.nn.fused_loss import fused_cross_entropy


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
    """What a language model loses on packed rows, before anything is divided.

    Attributes:
      loss_sum: summed loss of all counted ids (and the z-loss); the one field with a gradient.
      losses, correct: of each target, counted or not.
    """

    loss_sum: Float[Array, ""]
    losses: Float[Array, "batch length"]
    correct: Bool[Array, "batch length"]
    weights: Float[Array, "batch length"]
    targets: Int[Array, "batch length"]

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
    hidden: Float[Array, "batch length embed"],
    kernel: Float[Array, "embed vocab"],
    batch: Mapping[str, Array],
    *,
    z_weight: float = 0.0,
) -> PackedLoss:
    """Next-id loss of packed rows (`ids`, `segments`, `loss_mask`), documents kept apart.

    Args:
      hidden, kernel: a language model's last states and output layer; see `fused_cross_entropy`.
    """
    targets, weights = next_ids(batch["ids"], batch["segments"], batch["loss_mask"])
    lost = fused_cross_entropy(hidden, kernel, targets, weights, z_weight=z_weight)
    return PackedLoss(*lost, weights, targets)
