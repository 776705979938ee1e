"""Floats <-> int8: each vector is whole numbers from -127 to 127 times a scale of its own.

Half the bytes of bfloat16, for what decoding reads at every step: weights and kept keys and values
(docs/decoding.md has what it costs). Rounding is to nearest, so that a number differs by at most
half of its vector's scale.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from speechlm_jax.arrays import Array, Float, Int, PyTree


class Quantised(NamedTuple):
    """Vectors along the last axis.

    Attributes:
      values: int8.
      scales: float32.
    """

    values: Int[Array, "*vectors size"]
    scales: Float[Array, "*vectors"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the floats."""
        return self.values.shape


def quantise(x: Float[Array, "*vectors size"]) -> Quantised:
    """Rounds each vector to 127 steps on either side of 0, the last of which is its largest."""
    x = x.astype(jnp.float32)
    scales = jnp.max(jnp.abs(x), axis=-1) / 127
    steps = jnp.where(scales == 0, 1, scales)[..., None]  # zeros stay zeros
    return Quantised(jnp.round(x / steps).astype(jnp.int8), scales)


def dequantise(x: Quantised) -> Float[Array, "*vectors size"]:
    """Returns the vectors in float32."""
    return x.values * x.scales[..., None]


def quantise_kernels(params: PyTree) -> PyTree:
    """Returns parameters whose kernels are int8, with the scale of each output beside them."""

    def quantised(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        parts = {name: quantised(part) for name, part in node.items()}
        if "kernel" in node:
            values, parts["kernel_scale"] = quantise(node["kernel"].T)
            parts["kernel"] = values.T
        return parts

    return quantised(params)
