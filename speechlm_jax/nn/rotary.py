"""Rotary positions (Su et al. 2021, RoFormer): queries and keys turned by angles of their place."""

import dataclasses
import math

import jax.numpy as jnp

from speechlm_jax import config as configs
from speechlm_jax.arrays import Array, Float, Int
from speechlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class LongContext:
    """Llama 3.1's stretching of slow rotations (`rope_type: llama3` in Hugging Face configs).

    Attributes:
      factor: wavelengths that do not fit `length` are stretched by this.
      low_freq, high_freq: a wavelength longer than `length / low_freq` is stretched wholly, one
        shorter than `length / high_freq` not at all.
      length: context that the model was first trained with.
    """

    factor: float = 8.0
    low_freq: float = 1.0
    high_freq: float = 4.0
    length: int = 8192

    def __post_init__(self) -> None:
        configs.at_least(self, 1, "factor", "length")
        configs.above_0(self, "low_freq")
        if not self.low_freq < self.high_freq:
            raise UserError(f"high_freq: {self.high_freq} is not above low_freq, {self.low_freq}")


def rates(
    size: int, theta: float, long_context: LongContext | None = None
) -> Float[Array, " pairs"]:
    """Radians a position for each of the `size // 2` pairs that are rotated."""
    pairs = jnp.arange(size // 2, dtype=jnp.float32)
    rate = theta ** (-pairs / (size // 2))
    if long_context is None:
        return rate
    turns = long_context.length * rate / (2 * math.pi)  # full turns within the first context
    span = long_context.high_freq - long_context.low_freq
    kept = jnp.clip((turns - long_context.low_freq) / span, 0.0, 1.0)
    return rate * (kept + (1 - kept) / long_context.factor)


def rotate(
    x: Float[Array, "batch length heads head_dim"],
    positions: Int[Array, "batch length"],
    theta: float,
    *,
    fraction: float = 1.0,
    long_context: LongContext | None = None,
) -> Float[Array, "batch length heads head_dim"]:
    """Rotates the first `fraction` of head_dim, its halves against each other as in Llama.

    Models that rotate neighbours instead (GLM-4) are the same model with the columns of their query
    and key projections in another order; `convert` puts them into this one.
    """
    size = int(x.shape[-1] * fraction)
    angles = positions[:, :, None, None].astype(jnp.float32) * rates(size, theta, long_context)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    turning, still = x[..., :size].astype(jnp.float32), x[..., size:]
    first, second = jnp.split(turning, 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), still], axis=-1)
