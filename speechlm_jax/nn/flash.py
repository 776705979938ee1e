"""Which kernel attends over packed rows, and that of TPUs, which never holds the scores.

The kernel follows the platform of the mesh in scope, and of this process only without one, so that
a program can be compiled for a TPU that is not there. Elsewhere it runs in Pallas' interpreter.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as splash_mask,
)
from jax.sharding import NamedSharding, PartitionSpec

from speechlm_jax.arrays import Array, Float, Int
from speechlm_jax.errors import UserError
from speechlm_jax.nn import cudnn
from speechlm_jax.nn.blockwise import kv_for
from speechlm_jax.sharding import BATCH_AXES, axis_size, over_mesh, platform

Kernel: TypeAlias = Literal["auto", "reference", "blockwise", "splash", "cudnn"]
LANES = 128  # of a TPU's vector registers: head_dim is padded to it, lengths are multiples of it
SPLASH_BLOCK = 512
OF_PLATFORM: dict[str, Kernel] = {
    "tpu": "splash", "gpu": "cudnn", "cuda": "cudnn", "cpu": "blockwise",
}  # fmt: skip


def choose(kernel: Kernel, *, block: int | None, length: int, dtype: Any, head_dim: int) -> Kernel:
    """The kernel that "auto" stands for: the platform's, where it knows the mask and the arrays.

    Where cuDNN refuses (float32, an older GPU), blocks of queries serve: exact, on any platform.
    """
    if kernel != "auto":
        return kernel
    found, parts = OF_PLATFORM.get(platform(), "reference"), axis_size("context")
    if found == "splash":
        return found if block == 1 and length % (LANES * parts) == 0 else "reference"
    if found == "cudnn" and block == 1 and cudnn.refusal(dtype, head_dim) is None:
        return found
    return "reference" if found == "reference" or parts > 1 else "blockwise"


def attend_splash(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch length kv_heads head_dim"],
    v: Float[Array, "batch length kv_heads head_dim"],
    segments: Int[Array, "batch length"],
) -> Float[Array, "batch length heads head_dim"]:
    """Causal grouped-query attention in which documents of a row stay apart.

    Each device attends for its own rows and heads; with a `context` axis for its part of the
    queries over all keys.

    Raises:
      UserError: heads do not divide over `tensor`, or the length does not split.
    """
    shards, parts = axis_size("tensor"), axis_size("context")
    if q.shape[2] % shards:
        raise UserError(f"mesh.tensor: {q.shape[2]} heads do not divide over {shards} devices")
    if q.shape[1] % (LANES * parts):
        taken = f"multiples of {LANES}" + (f" for each of {parts} parts" if parts > 1 else "")
        raise UserError(f"length {q.shape[1]}: splash attention takes {taken}")
    k, v = kv_for(shards, q, k, v)
    length, heads, size = q.shape[1:]
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
