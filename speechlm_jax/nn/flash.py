"""Causal attention over packed rows by a kernel that never holds the scores: TPU and GPU.

The kernel follows the platform of the mesh in scope, and of this process only without one, so that
a program can be compiled for a machine that is not there. Elsewhere it runs in Pallas' interpreter.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu import attention as triton
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as splash_mask,
)
from jax.sharding import NamedSharding, PartitionSpec

from speechlm_jax.arrays import Array, Float, Int
from speechlm_jax.errors import UserError
from speechlm_jax.sharding import BATCH_AXES, axis_size, over_mesh, platform

Kernel: TypeAlias = Literal["auto", "reference", "blockwise", "splash", "triton"]
LANES = 128  # of a TPU's vector registers: head_dim is padded to it, lengths are multiples of it
SPLASH_BLOCK = 512
TRITON_BLOCK = 64
OF_PLATFORM: dict[str, Kernel] = {
    "tpu": "splash", "gpu": "triton", "cuda": "triton", "cpu": "blockwise",
}  # fmt: skip


def choose(kernel: Kernel, *, block: int | None, length: int) -> Kernel:
    """The kernel that "auto" stands for: the platform's, where it knows the mask and the length."""
    if kernel != "auto":
        return kernel
    found = OF_PLATFORM.get(platform(), "reference")
    if found == "blockwise":
        return found if axis_size("context") == 1 else "reference"
    splits = length % (LANES * axis_size("context")) == 0
    return found if block == 1 and splits else "reference"


def attend_packed(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch length kv_heads head_dim"],
    v: Float[Array, "batch length kv_heads head_dim"],
    segments: Int[Array, "batch length"],
    *,
    kernel: Kernel,
) -> Float[Array, "batch length heads head_dim"]:
    """Causal grouped-query attention in which documents of a row stay apart.

    Each device attends for its own rows and heads. With a `context` axis (splash alone) it does so
    for its part of the queries over all keys.

    Raises:
      UserError: heads do not divide over `tensor`, or `kernel` cannot split the length.
    """
    shards, parts = axis_size("tensor"), axis_size("context")
    if q.shape[2] % shards:
        raise UserError(f"mesh.tensor: {q.shape[2]} heads do not divide over {shards} devices")
    if q.shape[1] % (LANES * parts):
        taken = f"multiples of {LANES}" + (f" for each of {parts} parts" if parts > 1 else "")
        raise UserError(f"length {q.shape[1]}: {kernel} attention takes {taken}")
    run = {"splash": _splash, "triton": _triton}[kernel]
    return run(q, k, v, segments)


def kv_for(shards: int, q: Array, *kvs: Array) -> tuple[Array, ...]:
    """Keys and values whose heads divide over `shards`; repeated for each query head if need be."""
    if kvs[0].shape[2] % shards == 0:
        return kvs
    return tuple(jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in kvs)


def _splash(q: Array, k: Array, v: Array, segments: Array) -> Array:
    length, heads, size = q.shape[1:]
    shards, parts = axis_size("tensor"), axis_size("context")
    k, v = kv_for(shards, q, k, v)
    block = math.gcd(SPLASH_BLOCK, length // parts)
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,
    )  # fmt: skip
    causal = splash_mask.CausalMask((length, length), shard_count=parts)
    kernel = splash.make_splash_mha(
        mask=splash_mask.MultiHeadMask([causal] * heads),
        block_sizes=sizes, head_shards=shards, q_seq_shards=parts,
        interpret=OF_PLATFORM.get(platform()) != "splash",
    )  # fmt: skip
    wide = -(-size // LANES) * LANES
    q, k, v = (
        jnp.pad(x.swapaxes(1, 2), [(0, 0)] * 3 + [(0, wide - size)]) for x in (q * size**-0.5, k, v)
    )

    def mine(kernel: Callable, q: Array, k: Array, v: Array, asking: Array, asked: Array) -> Array:
        ids = splash.SegmentIds(q=asking, kv=asked)
        return jax.vmap(kernel)(q, k, v, ids)

    by_head = PartitionSpec(BATCH_AXES, "tensor", None, None)
    queries = PartitionSpec(BATCH_AXES, "tensor", "context", None)
    rows = (PartitionSpec(BATCH_AXES, "context"), PartitionSpec(BATCH_AXES, None))
    mesh = jax.sharding.get_abstract_mesh()
    spec = None
    if not mesh.empty:
        spec = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec("tensor", "context")))
    attend = over_mesh(mine, (spec, queries, by_head, by_head, *rows), queries)
    out = attend(kernel, q, k, v, segments, segments)
    return out[..., :size].swapaxes(1, 2)


def _triton(q: Array, k: Array, v: Array, segments: Array) -> Array:
    if axis_size("context") > 1:
        raise UserError("mesh.context: the GPU kernel does not split the length; use context=1")
    size, groups = q.shape[-1], q.shape[2] // k.shape[2]
    sizes = triton.BlockSizes(
        block_q=TRITON_BLOCK, block_k=TRITON_BLOCK, block_q_dkv=32, block_kv_dkv=32,
        block_q_dq=32, block_kv_dq=32,
    )  # fmt: skip
    mine = partial(
        triton.mha, sm_scale=size**-0.5, causal=True, block_sizes=sizes,
        interpret=OF_PLATFORM.get(platform()) != "triton",
    )  # fmt: skip
    k, v = (jnp.repeat(x, groups, axis=2) for x in (k, v))
    by_head = PartitionSpec(BATCH_AXES, None, "tensor", None)
    attend = over_mesh(mine, (*[by_head] * 3, PartitionSpec(BATCH_AXES, None)), by_head)
    return attend(q, k, v, segments)
