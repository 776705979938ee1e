"""Output layer and cross-entropy in one: the logits of a few positions at a time, forward only.

Logits are the largest array of a small model's step. Here each chunk of them is made once, gives
its losses and at once its part of both gradients, and is gone; nothing is recomputed in the
backward pass. Gradients are those of a sum of losses, so the backward pass only scales them.

Under a mesh each device does this for its own rows, positions and part of the vocabulary; the
output layer's gradient crosses the network once, after the last chunk.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from speechlm_jax.arrays import Array, Bool, Float, Int
from speechlm_jax.sharding import BATCH_AXES, on_one_device, over_mesh, platform

# Positions that a device of a platform takes at a time; GPUs are faster with more (docs/log.md).
CHUNK_POSITIONS = {"cpu": 1024, "tpu": 1024, "gpu": 4096, "cuda": 4096}


class FusedLoss(NamedTuple):
    """What a language model loses; only `loss_sum` has a gradient.

    Attributes:
      loss_sum: sum of weight times (loss + z_weight * log_z ** 2).
      losses: negative log-likelihood of each target, in nats.
      correct: whether the target is the likeliest id.
    """

    loss_sum: Float[Array, ""]
    losses: Float[Array, "batch length"]
    correct: Bool[Array, "batch length"]


def fused_cross_entropy(
    hidden: Float[Array, "batch length embed"],
    kernel: Float[Array, "embed vocab"],
    targets: Int[Array, "batch length"],
    weights: Float[Array, "batch length"],
    *,
    z_weight: float = 0.0,
    chunk: int | None = None,
) -> FusedLoss:
    """Loss of `targets` under `softmax(hidden @ kernel)`; logits and sums are float32.

    Args:
      weights: how much each position counts; no gradient reaches them.
      z_weight: of the squared log-partition (PaLM, Chowdhery et al. 2022, section 5).
      chunk: positions whose logits a device holds at a time, at least a column of the batch; None
        takes the platform's.
    """
    if chunk is None:
        chunk = CHUNK_POSITIONS.get(platform(), CHUNK_POSITIONS["cpu"])
    found: Any = _fused(hidden, kernel, targets, weights, z_weight, chunk)
    out = FusedLoss(*found)
    return out._replace(losses=jax.lax.stop_gradient(out.losses))


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _fused(
    hidden: Array, kernel: Array, targets: Array, weights: Array, z_weight: float, chunk: int
) -> Any:
    return _over_mesh(hidden, kernel, targets, weights, z_weight, chunk, grads=False)


def _forward(
    hidden: Array, kernel: Array, targets: Array, weights: Array, z_weight: float, chunk: int
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array, Array]]:
    *out, d_hidden, d_kernel = _over_mesh(
        hidden, kernel, targets, weights, z_weight, chunk, grads=True
    )
    loss_sum, losses, correct = out
    return (loss_sum, losses, correct), (d_hidden, d_kernel, targets, weights)


def _backward(z_weight: float, chunk: int, saved: tuple, given: tuple) -> tuple:
    d_hidden, d_kernel, targets, weights = saved
    scale = given[0]
    no_ids = jnp.zeros(targets.shape, jax.dtypes.float0)
    return d_hidden * scale.astype(d_hidden.dtype), d_kernel * scale, no_ids, weights * 0.0


_fused.defvjp(_forward, _backward)


def _over_mesh(
    hidden: Array,
    kernel: Array,
    targets: Array,
    weights: Array,
    z_weight: float,
    chunk: int,
    *,
    grads: bool,
) -> tuple[Array, ...]:
    """`_chunks` on every device of the mesh in scope, each with its part."""
    run = partial(_chunks, z_weight=z_weight, chunk=chunk, grads=grads)
    cast = kernel.astype(hidden.dtype)  # before it crosses the network
    if on_one_device():
        return run(hidden, cast, targets, weights)

    def mine(*given: Array) -> tuple[Array, ...]:
        loss_sum, losses, correct, *rest = run(*given, tensor="tensor")
        loss_sum = jax.lax.psum(loss_sum, (*BATCH_AXES, "context"))
        if not grads:
            return loss_sum, losses, correct
        d_hidden, d_kernel = rest
        # inside a slice first: a device's own part crosses the slow network, not the whole
        d_kernel = jax.lax.psum_scatter(d_kernel, "fsdp", scatter_dimension=0, tiled=True)
        d_kernel = jax.lax.psum(d_kernel, ("replica", "context"))
        return loss_sum, losses, correct, d_hidden, d_kernel

    rows = PartitionSpec(BATCH_AXES, "context")
    wide = PartitionSpec(BATCH_AXES, "context", None)
    outs = (PartitionSpec(), rows, rows, wide, PartitionSpec("fsdp", "tensor"))
    in_specs = (wide, PartitionSpec(None, "tensor"), rows, rows)
    found = over_mesh(mine, in_specs, outs if grads else outs[:3])
    return found(hidden, cast, targets, weights)


def _chunks(
    hidden: Array,
    kernel: Array,
    targets: Array,
    weights: Array,
    *,
    z_weight: float,
    chunk: int,
    grads: bool,
    tensor: str | None = None,
) -> tuple[Array, ...]:
    """Losses (and gradients) chunk by chunk; `tensor`: the mesh axis that splits `vocab`."""
    batch, length, _ = hidden.shape
    columns = min(length, max(1, chunk // batch))
    number = -(-length // columns)
    one = partial(_chunk, kernel=kernel, z_weight=z_weight, grads=grads, tensor=tensor)
    parts = [_split(x, number, columns) for x in (hidden, targets, weights)]
    start = (jnp.zeros((), jnp.float32), jnp.zeros(kernel.shape, jnp.float32) if grads else None)
    (loss_sum, d_kernel), outs = jax.lax.scan(one, start, parts)
    if d_kernel is not None and platform() == "cpu":
        # XLA would write a single chunk's product transposed for a tied embedding, and its CPU
        # matrix library has no such product of bfloat16 into float32
        d_kernel = jax.lax.optimization_barrier(d_kernel)
    losses, correct, *d_hidden = (_join(out, length) for out in outs if out is not None)
    return (loss_sum, losses, correct, *d_hidden, *([] if d_kernel is None else [d_kernel]))


def _chunk(
    carry: tuple[Array, Array | None],
    part: Sequence[Array],
    *,
    kernel: Array,
    z_weight: float,
    grads: bool,
    tensor: str | None,
) -> tuple[tuple[Array, Array | None], tuple[Array, Array, Array | None]]:
    loss_sum, d_kernel = carry
    hidden, targets, weights = part
    total = partial(jax.lax.psum, axis_name=tensor) if tensor else lambda x: x
    logits = jnp.einsum("bce,ev->bcv", hidden, kernel, preferred_element_type=jnp.float32)
    first = jax.lax.axis_index(tensor) * kernel.shape[1] if tensor else 0
    is_target = jnp.arange(kernel.shape[1]) == (targets - first)[..., None]
    top = jnp.max(logits, axis=-1)
    top = jax.lax.pmax(top, tensor) if tensor else top
    powers = jnp.exp(logits - top[..., None])
    partition = total(jnp.sum(powers, axis=-1))
    log_z = jnp.log(partition) + top
    picked = total(jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1))
    losses, correct = log_z - picked, picked >= top
    loss_sum = loss_sum + jnp.sum(weights * (losses + z_weight * jnp.square(log_z)))
    if d_kernel is None:
        return (loss_sum, None), (losses, correct, None)
    share = weights * (1.0 + 2.0 * z_weight * log_z) / partition
    d_logits = powers * share[..., None] - jnp.where(is_target, weights[..., None], 0.0)
    d_logits = d_logits.astype(hidden.dtype)
    d_hidden = jnp.einsum("bcv,ev->bce", d_logits, kernel, preferred_element_type=jnp.float32)
    d_kernel = d_kernel + jnp.einsum(
        "bce,bcv->ev", hidden, d_logits, preferred_element_type=jnp.float32
    )
    return (loss_sum, d_kernel), (losses, correct, total(d_hidden).astype(hidden.dtype))


def _split(x: Array, number: int, columns: int) -> Array:
    """[batch, length, ...] to [number, batch, columns, ...], padded with zeros (weight 0)."""
    padding = [(0, 0), (0, number * columns - x.shape[1]), *[(0, 0)] * (x.ndim - 2)]
    x = jnp.pad(x, padding).reshape(x.shape[0], number, columns, *x.shape[2:])
    return x.swapaxes(0, 1)


def _join(x: Array, length: int) -> Array:
    """The inverse of `_split`."""
    x = x.swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
