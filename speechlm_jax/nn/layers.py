"""Linear maps, norms and convolutions: the small parts that blocks are made of."""

import dataclasses
import math
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from speechlm_jax import config as configs
from speechlm_jax.arrays import Array, Float, Shaped
from speechlm_jax.nn import param
from speechlm_jax.sharding import platform

FEW_ROWS = 64  # up to which a CPU has the kernel to the left
Map: TypeAlias = Literal["q", "k", "v", "o", "gate", "up", "down"]
NormKind: TypeAlias = Literal["rms", "layer"]


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank adapters (Hu et al. 2021): `x @ (kernel + alpha / rank * a @ b)`, b zero at first.

    Attributes:
      rank: columns of a, rows of b.
      alpha: what the adapter counts, in units of 1 / rank.
      targets: which of a block's maps have one: q, k, v, o, gate, up, down.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[Map, ...] = get_args(Map)

    def __post_init__(self) -> None:
        configs.at_least(self, 1, "rank")
        configs.above_0(self, "alpha")

    @property
    def scale(self) -> float:
        """What `a @ b` is multiplied by."""
        return self.alpha / self.rank


class Linear(nnx.Module):
    """`x @ kernel (+ bias)` over the last axis; computes in the dtype of `x`.

    A kernel in int8 (`nn/int8.py`) has a `kernel_scale` for each output.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        axes: param.Axes,
        *,
        rngs: nnx.Rngs,
        bias: bool = False,
        scale: float = 1.0,
        lora: Lora | None = None,
    ):
        self.kernel = param.normal(rngs, (inputs, outputs), axes, stddev=scale * inputs**-0.5)
        self.kernel_scale: nnx.Param | None = None
        self.bias = param.constant((outputs,), axes[1:], value=0.0) if bias else None
        self.transposed = False  # whether the kernel lies as (outputs, inputs): `decoding_params`
        self.lora_scale = lora.scale if lora else 0.0
        down, up = (axes[0], None), (None, axes[1])
        self.lora_a = (
            param.normal(rngs, (inputs, lora.rank), down, stddev=inputs**-0.5) if lora else None
        )
        self.lora_b = param.constant((lora.rank, outputs), up, value=0.0) if lora else None

    @property
    def matrix(self) -> Shaped[Array, "inputs outputs"]:
        """The kernel, in the parameters' dtype; of int8, without its scales."""
        return self.kernel[...].T if self.transposed else self.kernel[...]

    def scale_outputs(self) -> None:
        """Makes room for what an int8 kernel needs: a scale of each output."""
        axes = self.kernel.get_metadata("logical")
        scale = param.constant(self.kernel.shape[1:], axes[1:], value=1.0)
        self.kernel_scale = nnx.data(scale)

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        batch = x.shape[:-1]
        if platform() == "cpu":
            # one axis to sum over in the backward pass: XLA would copy the inputs for two. Where
            # the axes lie on a mesh, they stay apart.
            x = x.reshape(-1, x.shape[-1])
        kernel = self.kernel[...].astype(x.dtype)
        exact = x.dtype if self.kernel_scale is None else jnp.float32
        if self.transposed:
            y = times_transposed(x, kernel, exact)
        else:
            y = jnp.matmul(x, kernel, preferred_element_type=exact)
        if self.kernel_scale is not None:
            y = (y * self.kernel_scale[...]).astype(x.dtype)
        if self.lora_a is not None and self.lora_b is not None:
            low = x @ self.lora_a[...].astype(x.dtype)
            y = y + self.lora_scale * (low @ self.lora_b[...].astype(x.dtype))
        y = y if self.bias is None else y + self.bias[...].astype(x.dtype)
        return y.reshape(*batch, -1)


def times_transposed(
    x: Float[Array, "*batch inputs"], kernel: Float[Array, "outputs inputs"], dtype: DTypeLike
) -> Float[Array, "*batch outputs"]:
    """Returns `x @ kernel.T` in `dtype`.

    On a CPU, XLA multiplies a few rows up to twice as fast with the kernel to the left, if the
    barrier keeps it from turning the product round again (docs/log.md).
    """
    rows = math.prod(x.shape[:-1])
    if platform() != "cpu" or rows > FEW_ROWS:
        return jnp.matmul(x, kernel.T, preferred_element_type=dtype)
    y = jnp.matmul(kernel, x.reshape(rows, -1).T, preferred_element_type=dtype)
    return jax.lax.optimization_barrier(y).T.reshape(*x.shape[:-1], -1)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation (Zhang & Sennrich 2019), computed in float32."""

    def __init__(self, size: int, *, eps: float = 1e-6):
        self.scale = param.constant((size,), (None,), value=1.0)
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (x32 * self.scale[...]).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Normalisation to mean 0 and variance 1 (Ba et al. 2016), computed in float32."""

    def __init__(self, size: int, *, eps: float = 1e-5):
        self.scale = param.constant((size,), (None,), value=1.0)
        self.bias = param.constant((size,), (None,), value=0.0)
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        x32 = x.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (x32 * self.scale[...] + self.bias[...]).astype(x.dtype)


def make_norm(kind: NormKind, size: int, *, eps: float) -> RMSNorm | LayerNorm:
    """Returns a norm of a kind over the last axis of `size`."""
    return RMSNorm(size, eps=eps) if kind == "rms" else LayerNorm(size, eps=eps)


class Conv(nnx.Module):
    """A 1-D convolution with a bias: output `t` stands at input `t * stride`.

    A causal one sees the inputs up to there and none later: the left padding of `kernel - 1` stands
    for the past, which is zeros at the start of a clip and the last inputs of the previous block in
    a stream (`past`). Otherwise it sees as many inputs after as before, as in Whisper.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: int,
        stride: int,
        rngs: nnx.Rngs,
        causal: bool = True,
    ):
        stddev = (inputs * kernel) ** -0.5
        self.kernel = param.normal(
            rngs, (kernel, inputs, outputs), (None, None, "embed"), stddev=stddev
        )
        self.bias = param.constant((outputs,), (None,), value=0.0)
        self.stride, self.causal = stride, causal

    def __call__(
        self,
        x: Float[Array, "batch time inputs"],
        past: Float[Array, "batch past inputs"] | None = None,
    ) -> Float[Array, "batch strided outputs"]:
        before = self.kernel.shape[0] - 1
        after = 0 if self.causal else before // 2
        if past is not None:
            x, before = jnp.concatenate([past, x], axis=1), after
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            window_strides=(self.stride,),
            padding=[(before - after, after)],
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return y + self.bias[...].astype(x.dtype)


def sinusoids(positions: Float[Array, "*batch"], size: int) -> Float[Array, "*batch size"]:
    """Sinusoidal positions: sines, then cosines, of wavelengths from 2 pi to 20,000 pi."""
    rates = jnp.exp(-jnp.log(10_000.0) * jnp.arange(size // 2) / (size // 2 - 1))
    angles = positions[..., None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
