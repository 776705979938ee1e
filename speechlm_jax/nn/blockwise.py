"""Attention that makes the scores of a few queries at a time, and again in the backward pass.

Scores are the largest arrays of a training step on a CPU: far larger than its caches, so that to
keep them costs more than to make them twice (Rabe & Staats 2021). Keys that come too late for all
queries of a block are not read. On other platforms a kernel does the same (`flash.py`).
"""

from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from speechlm_jax.arrays import Array, Bool, Float
from speechlm_jax.sharding import BATCH_AXES, axis_size, over_mesh

QUERIES = 128  # of a block, at least
BLOCKS = 8  # of a row, at most: each is a part of the program
SCORES = 2**20  # held at a time, unless a block of one row has more

Saved: TypeAlias = tuple[Array, ...]


def attend_blockwise(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch length kv_heads head_dim"],
    v: Float[Array, "batch length kv_heads head_dim"],
    mask: Bool[Array, "batch length length"],
    *,
    block: int | None,
) -> Float[Array, "batch length heads head_dim"]:
    """Grouped-query attention of rows to themselves; equal to `attention.attend`.

    Args:
      mask: who sees whom; of `block` positions or fewer later at most (None: however late).
    """
    k, v = kv_for(axis_size("tensor"), q, k, v)
    by_head = PartitionSpec(BATCH_AXES, None, "tensor", None)
    specs = (by_head, by_head, by_head, PartitionSpec(BATCH_AXES))
    return over_mesh(partial(_rows, block=block), specs, by_head)(q, k, v, mask)


def kv_for(shards: int, q: Array, *kvs: Array) -> tuple[Array, ...]:
    """Keys and values whose heads divide over `shards`; repeated for each query head if need be."""
    if kvs[0].shape[2] % shards == 0:
        return kvs
    return tuple(jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in kvs)


def _rows(q: Array, k: Array, v: Array, mask: Array, *, block: int | None) -> Array:
    batch, length, heads, head_dim = q.shape
    groups = k.shape[2]
    q = (q * head_dim**-0.5).reshape(batch, length, groups, heads // groups, head_dim)
    q, k, v = q.transpose(0, 2, 3, 1, 4), k.swapaxes(1, 2), v.swapaxes(1, 2)
    out: Any = _attend(q, k, v, mask, block)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, head_dim)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q: Array, k: Array, v: Array, mask: Array, block: int | None) -> Any:
    """q [batch, groups, repeats, length, head_dim], k and v [batch, groups, length, head_dim]."""
    return _forward(q, k, v, mask, block)[0]


def _forward(q: Array, k: Array, v: Array, mask: Array, block: int | None) -> tuple[Array, Saved]:
    out, top, total = _few_rows(_row_forward, block, q, k, v, mask)
    return out, (q, k, v, mask, out, top, total)


def _backward(block: int | None, saved: Saved, given: Array) -> tuple[Array | None, ...]:
    d_q, d_k, d_v = _few_rows(_row_backward, block, *saved, given)
    return d_q, d_k, d_v, None


_attend.defvjp(_forward, _backward)


def _few_rows(run: Any, block: int | None, q: Array, *others: Array) -> tuple[Array, ...]:
    """`run` over the rows of a batch, so many at a time that their scores stay in the caches."""
    _, groups, repeats, length, _ = q.shape
    rows = max(1, SCORES // (groups * repeats * _queries(length) * length))
    return jax.lax.map(lambda row: run(*row, block=block), (q, *others), batch_size=rows)


def _row_forward(
    q: Array, k: Array, v: Array, mask: Array, *, block: int | None
) -> tuple[Array, Array, Array]:
    parts = []
    for queries, keys in _blocks(mask.shape[0], block):
        scores = _scores(q[:, :, queries], k[:, keys], mask[queries, keys])
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = _products("gqk,gkd->gqd", weights.astype(v.dtype), v[:, keys])
        parts.append((out / total.astype(out.dtype), top, total))
    out, top, total = (jnp.concatenate(part, axis=2) for part in zip(*parts, strict=True))
    return out, top, total


def _row_backward(
    q: Array, k: Array, v: Array, mask: Array, out: Array, top: Array, total: Array, given: Array,
    *, block: int | None,
) -> tuple[Array, Array, Array]:  # fmt: skip
    d_q, d_k, d_v = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    own = jnp.sum(given * out, axis=-1, keepdims=True, dtype=jnp.float32)
    for queries, keys in _blocks(mask.shape[0], block):
        mine, theirs, back = q[:, :, queries], k[:, keys], given[:, :, queries]
        scores = _scores(mine, theirs, mask[queries, keys])
        weights = jnp.exp(scores - top[:, :, queries]) / total[:, :, queries]
        d_weights = _products("gqd,gkd->gqk", back, v[:, keys], jnp.float32)
        d_scores = (weights * (d_weights - own[:, :, queries])).astype(q.dtype)
        d_q.append(_products("gqk,gkd->gqd", d_scores, theirs))
        d_k = d_k.at[:, keys].add(_over_queries(d_scores, mine))
        d_v = d_v.at[:, keys].add(_over_queries(weights.astype(v.dtype), back))
    return jnp.concatenate(d_q, axis=2), d_k.astype(k.dtype), d_v.astype(v.dtype)


def _queries(length: int) -> int:
    return min(length, max(QUERIES, -(-length // BLOCKS)))


def _blocks(length: int, block: int | None) -> list[tuple[slice, slice]]:
    """Each block's queries, and the keys that they may see."""
    blocks = []
    for first in range(0, length, _queries(length)):
        last = min(first + _queries(length), length)
        keys = length if block is None else min(length, last + block - 1)
        blocks.append((slice(first, last), slice(0, keys)))
    return blocks


def _scores(q: Array, k: Array, mask: Array) -> Array:
    return jnp.where(mask, _products("gqd,gkd->gqk", q, k, jnp.float32), -1e30)


def _products(equation: str, x: Array, y: Array, dtype: Any = None) -> Array:
    """Products of [groups, repeats, queries, any] with [groups, ...]; of plain matrices."""
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    found = jnp.einsum(equation, flat, y, preferred_element_type=dtype)
    return found.reshape(*x.shape[:-1], -1)


def _over_queries(x: Array, y: Array) -> Array:
    """Sums over repeats and queries: [groups, keys, head_dim]."""
    x, y = (part.reshape(part.shape[0], -1, part.shape[-1]) for part in (x, y))
    return jnp.einsum("gqk,gqd->gkd", x, y, preferred_element_type=jnp.float32)
