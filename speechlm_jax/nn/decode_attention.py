"""Attention of one new position a row to what the row holds, by a kernel that reads no more.

`attend` stands for `cache.attend`. Where a row has one query, on GPU and TPU, a Pallas kernel reads
each row's keys and values up to its own end, some at a time; how many follows from the cache's
length alone, never from the number of rows, so that a row's result does not either. Elsewhere, and
for what the kernels do not take (`chosen`), the loop of `cache.attend` serves.

JAX's own kernels (`pallas/ops/tpu/paged_attention`, `pallas/ops/gpu/decode_attention.py`) were the
start. They let a NaN beyond a row's end into its result, and take only lengths that divide.

State: compiled for v4, v5e, v5p and v6e by the TPU compiler, lowered to Triton for GPUs, and tested
in Pallas' interpreter. **Not run on a TPU, and not run on a GPU.**
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton
from jax.sharding import PartitionSpec

from speechlm_jax.arrays import Array, Float, Int
from speechlm_jax.nn import cache
from speechlm_jax.nn.cache import Kept
from speechlm_jax.nn.int8 import Quantised
from speechlm_jax.sharding import BATCH_AXES, axis_size, over_mesh, platform

TPU_KEYS = 512  # that a step of the TPU kernel reads of one head
TRITON_KEYS = 64  # that a step of the GPU kernel reads of one head
TRITON_HEADS = 16  # of queries, padding included: the fewest that Triton multiplies
SPLITS = 16  # parts in which a GPU reads a row side by side, at most
LEAST_SPLIT = 256  # keys of such a part
MASKED = -1e30

# (queries, keys, values, ends) -> attended, as `attend_tpu`
Kernel: TypeAlias = Callable[[Array, Array, Array, Array], Array]


def attend(
    q: Float[Array, "rows queries heads head_dim"],
    k: Kept,
    v: Kept,
    positions: Int[Array, "rows queries"],
    ends: Int[Array, " rows"],
    block: int | None,
) -> Float[Array, "rows queries heads head_dim"]:
    """Attention of the newest positions to all that their rows hold; see `cache.attend`."""
    kernel = chosen(q, k)
    if kernel is None:
        return cache.attend(q, k, v, positions, ends, block)
    queries = PartitionSpec(BATCH_AXES, "tensor", None)
    kept = PartitionSpec("tensor", BATCH_AXES, None, None)
    run = over_mesh(kernel, (queries, kept, kept, PartitionSpec(BATCH_AXES)), queries)
    return run(q[:, 0], k, v, ends)[:, None]


def chosen(q: Any, k: Any) -> Kernel | None:
    """The platform's kernel, where it takes these queries and keys; None: it does not.

    It takes one query a row (the newest: it sees all that the row holds), bfloat16 (not int8),
    heads of 128 or 256 numbers (on a GPU also of 64, for which a TPU would lay the cache out
    otherwise, and copy it), and rows and heads of keys that divide over the mesh.
    """
    on = platform()
    kernel = {"tpu": attend_tpu, "gpu": attend_triton, "cuda": attend_triton}.get(on)
    rows, queries, _, head_dim = q.shape
    shards = axis_size("replica") * axis_size("fsdp")
    taken = (
        queries == 1
        and not isinstance(k, Quantised)
        and q.dtype == k.dtype == jnp.bfloat16
        and head_dim in ((128, 256) if on == "tpu" else (64, 128, 256))
        and rows % shards == 0
        and k.shape[0] % axis_size("tensor") == 0
    )
    return kernel if taken else None


def attend_tpu(
    q: Float[Array, "rows heads head_dim"],
    k: Float[Array, "kv_heads rows length head_dim"],
    v: Float[Array, "kv_heads rows length head_dim"],
    ends: Int[Array, " rows"],
    *,
    interpret: Any = False,
) -> Float[Array, "rows heads head_dim"]:
    """Attention of a query a row to its first `ends` keys, on a TPU; a row with 0 gets zeros.

    The grid runs over a list of the blocks that rows need (as Megablox' `gmm` does over tiles), so
    that what is not filled costs nothing, and the next block is on its way while one is read.
    """
    rows, heads, head_dim = q.shape
    groups, _, length, _ = k.shape
    repeats, size = heads // groups, min(TPU_KEYS, length)
    row_of, number_of, total = _blocks(ends, size, -(-length // size))
    q = (q * head_dim**-0.5).astype(q.dtype).reshape(rows, groups, repeats, head_dim)

    def of_row(group: Array, step: Array, row_of: Any, *_: Any) -> tuple[Any, ...]:
        return row_of[step], group, 0, 0

    def of_block(
        group: Array, step: Array, row_of: Any, number_of: Any, *_: Any
    ) -> tuple[Any, ...]:
        return group, row_of[step], number_of[step], 0

    mine = pl.BlockSpec((None, None, repeats, head_dim), of_row)
    keys = pl.BlockSpec((None, None, size, head_dim), of_block)
    out = pl.pallas_call(
        partial(_tpu_kernel, size=size),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3, grid=(groups, total),
            in_specs=[mine, keys, keys], out_specs=mine,
            scratch_shapes=[
                pltpu.VMEM((repeats, 1), jnp.float32), pltpu.VMEM((repeats, 1), jnp.float32),
                pltpu.VMEM((repeats, head_dim), jnp.float32),
            ],
        ),
        # Heads go to both cores of a chip that has two.
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        interpret=interpret,
        name="attend_cached",
    )(row_of, number_of, ends, q, k, v)  # fmt: skip
    out = jnp.where(ends[:, None, None, None] > 0, out, 0)  # no step writes a row with 0
    return out.reshape(rows, heads, head_dim)


def _blocks(
    ends: Int[Array, " rows"], size: int, most: int
) -> tuple[Int[Array, " steps"], Int[Array, " steps"], Int[Array, ""]]:
    """The blocks that rows need: of each its row and its number in the row; and how many.

    There is always one: rows that all have 0 keys read a block that is masked.
    """
    needed = -(-ends // size)
    last = jnp.cumsum(needed)
    steps = jnp.arange(len(ends) * most)
    row_of = jnp.minimum(jnp.searchsorted(last, steps, side="right"), len(ends) - 1)
    number_of = jnp.clip(steps - (last - needed)[row_of], 0, most - 1)
    return row_of.astype(jnp.int32), number_of.astype(jnp.int32), jnp.maximum(last[-1], 1)


def _tpu_kernel(
    row_of: Any, number_of: Any, ends: Any, q: Any, k: Any, v: Any, out: Any,
    top: Any, total: Any, sums: Any, *, size: int,
) -> None:  # fmt: skip
    step = pl.program_id(1)
    first = number_of[step] * size
    end = ends[row_of[step]]

    @pl.when(first == 0)
    def _begin() -> None:
        top[...] = jnp.full_like(top, MASKED)
        total[...] = jnp.zeros_like(total)
        sums[...] = jnp.zeros_like(sums)

    scores = jax.lax.dot_general(
        q[...], k[...], (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    real = first + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1) < end
    scores = jnp.where(real, scores, MASKED)
    highest = jnp.maximum(top[...], jnp.max(scores, axis=1, keepdims=True))
    weights = jnp.where(real, jnp.exp(scores - highest), 0.0)
    less = jnp.exp(top[...] - highest)
    # A weight of 0 is not enough: what follows a row's end may be NaN.
    filled = first + jax.lax.broadcasted_iota(jnp.int32, v.shape, 0) < end
    values = jnp.where(filled, v[...].astype(jnp.float32), 0.0).astype(v.dtype)
    found = jnp.dot(weights.astype(v.dtype), values, preferred_element_type=jnp.float32)
    top[...] = highest
    total[...] = total[...] * less + jnp.sum(weights, axis=1, keepdims=True)
    sums[...] = sums[...] * less + found

    @pl.when(first + size >= end)
    def _end() -> None:
        out[...] = (sums[...] / jnp.maximum(total[...], 1e-30)).astype(out.dtype)


def attend_triton(
    q: Float[Array, "rows heads head_dim"],
    k: Float[Array, "kv_heads rows length head_dim"],
    v: Float[Array, "kv_heads rows length head_dim"],
    ends: Int[Array, " rows"],
    *,
    interpret: bool = False,
) -> Float[Array, "rows heads head_dim"]:
    """Attention of a query a row to its first `ends` keys, on a GPU; a row with 0 gets zeros.

    A row is read in parts side by side, with a running softmax each, which are then joined
    (flash decoding, Dao et al. 2023).
    """
    rows, heads, head_dim = q.shape
    groups, _, length, _ = k.shape
    repeats = heads // groups
    size = max(LEAST_SPLIT, -(-length // (SPLITS * TRITON_KEYS)) * TRITON_KEYS)
    splits = -(-length // size)
    q = (q * head_dim**-0.5).astype(q.dtype).reshape(rows, groups, repeats, head_dim)
    whole = pl.BlockSpec(
        (None, None, length, head_dim), lambda row, group, split: (group, row, 0, 0)
    )
    numbers = jax.ShapeDtypeStruct((splits, rows, groups, repeats), jnp.float32)
    sums, top, total = pl.pallas_call(
        partial(_triton_kernel, size=size, length=length),
        grid=(rows, groups, splits),
        in_specs=[
            pl.BlockSpec((None,), lambda row, group, split: (row,)),
            pl.BlockSpec(
                (None, None, repeats, head_dim), lambda row, group, split: (row, group, 0, 0)
            ),
            whole, whole,
        ],
        out_specs=[
            pl.BlockSpec(
                (None, None, None, repeats, head_dim),
                lambda row, group, split: (split, row, group, 0, 0),
            ),
            *[
                pl.BlockSpec(
                    (None, None, None, repeats), lambda row, group, split: (split, row, group, 0)
                )
            ] * 2,
        ],
        out_shape=[
            jax.ShapeDtypeStruct((*numbers.shape, head_dim), jnp.float32), numbers, numbers
        ],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="attend_cached",
    )(ends, q, k, v)  # fmt: skip
    less = jnp.exp(top - jnp.max(top, axis=0))
    total = jnp.sum(total * less, axis=0)
    out = jnp.sum(sums * less[..., None], axis=0) / jnp.maximum(total, 1e-30)[..., None]
    return out.astype(q.dtype).reshape(rows, heads, head_dim)


def _triton_kernel(
    end: Any, q: Any, k: Any, v: Any, sums: Any, top: Any, total: Any, *, size: int, length: int
) -> None:
    repeats, head_dim = q.shape
    wide = max(TRITON_HEADS, pl.next_power_of_2(repeats))
    every, heads = pl.ds(0, wide), jnp.arange(wide) < repeats
    first = pl.program_id(2) * size
    last = jnp.minimum(end[()], first + size)
    asked = triton.load(q.at[every, :], mask=heads[:, None], other=0.0)

    def read(number: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        highest, so_far, found = carry
        start = first + number * TRITON_KEYS
        real = start + jnp.arange(TRITON_KEYS) < last
        some = pl.ds(start, TRITON_KEYS)
        keys, values = (triton.load(x.at[some, :], mask=real[:, None], other=0.0) for x in (k, v))
        scores = jnp.where(real[None], triton.dot(asked, keys.T), MASKED)
        higher = jnp.maximum(highest, jnp.max(scores, axis=1))
        weights = jnp.where(real[None], jnp.exp(scores - higher[:, None]), 0.0)
        less = jnp.exp(highest - higher)
        more = triton.dot(weights.astype(values.dtype), values)
        return higher, so_far * less + jnp.sum(weights, axis=1), found * less[:, None] + more

    start = (
        jnp.full(wide, MASKED, jnp.float32), jnp.zeros(wide, jnp.float32),
        jnp.zeros((wide, head_dim), jnp.float32),
    )  # fmt: skip
    steps = jnp.maximum(pl.cdiv(last - first, TRITON_KEYS), 0)
    highest, so_far, found = jax.lax.fori_loop(0, steps, read, start)
    triton.store(sums.at[every, :], found, mask=heads[:, None])
    triton.store(top.at[every], highest, mask=heads)
    triton.store(total.at[every], so_far, mask=heads)
