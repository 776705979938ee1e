"""Attention behind one function and one rule of who sees whom.

A query sees a key iff both lie in the same segment (documents packed in a row stay apart; segment
0 is padding) and the key's block is not later than the query's: with `block=1` that is causal
attention, with a larger block the block-causal attention of the speech tokenizer (GLM-4-Voice
report, section 3.1), with `block=None` bidirectional attention.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from speechlm_jax.arrays import Array, Bool, Float, Int
from speechlm_jax.errors import UserError
from speechlm_jax.nn import cudnn, flash
from speechlm_jax.nn.blockwise import attend_blockwise
from speechlm_jax.nn.flash import Kernel

Attend: TypeAlias = Callable[[Array, Array, Array], Array]  # queries, keys, values


class Layout(NamedTuple):
    """Where queries or keys stand: their documents and their positions in them.

    Attributes:
      seen: false where a position of a document is read by no other, and not by itself; None: all
        of a document's are read.
    """

    segments: Int[Array, "batch length"]
    positions: Int[Array, "batch length"]
    seen: Bool[Array, "batch length"] | None = None


def whole(lengths: Int[Array, " batch"], size: int) -> Layout:
    """The layout of right-padded sequences, one document each."""
    places = jnp.broadcast_to(jnp.arange(size), (lengths.shape[0], size))
    return Layout(segments=(places < lengths[:, None]).astype(jnp.int32), positions=places)


def visible(queries: Layout, keys: Layout, block: int | None) -> Bool[Array, "batch queries keys"]:
    """The rule above as a dense mask."""
    mask = queries.segments[:, :, None] == keys.segments[:, None, :]
    mask &= keys.segments[:, None, :] > 0
    if keys.seen is not None:
        mask &= keys.seen[:, None, :]
    if block is not None:
        mask &= queries.positions[:, :, None] // block >= keys.positions[:, None, :] // block
    return mask


def attend(
    q: Float[Array, "batch queries heads head_dim"],
    k: Float[Array, "batch keys kv_heads head_dim"],
    v: Float[Array, "batch keys kv_heads head_dim"],
    mask: Bool[Array, "batch queries keys"],
) -> Float[Array, "batch queries heads head_dim"]:
    """Grouped-query attention; scores and softmax in float32.

    A query that sees nothing (padding) gets finite values, which no loss counts.

    The queries of a group's heads stand one after the other, so that every product, forward and
    backward, is of plain matrices: on a CPU, XLA copies the scores for any other (docs/log.md).
    """
    batch, queries, heads, head_dim = q.shape
    groups = k.shape[2]
    split = (batch, groups, heads // groups, queries)
    q = q.reshape(batch, queries, groups, heads // groups, head_dim).transpose(0, 2, 3, 1, 4)
    q = (q * head_dim**-0.5).reshape(batch, groups, -1, head_dim)
    k, v = (x.swapaxes(1, 2) for x in (k, v))
    scores = jnp.einsum("bgqd,bgkd->bgqk", q, k, preferred_element_type=jnp.float32)
    unseen = jnp.where(mask, 0.0, -1e30)[:, None, None]
    scores = (scores.reshape(*split, -1) + unseen).reshape(scores.shape)
    # Weights are divided after they are summed over values: one pass less over the scores.
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - top)
    out = jnp.einsum("bgqk,bgkd->bgqd", weights.astype(v.dtype), v)
    out = out / jnp.sum(weights, axis=-1, keepdims=True).astype(out.dtype)
    out = out.reshape(*split, head_dim).transpose(0, 3, 1, 2, 4)
    return out.reshape(batch, queries, heads, head_dim)


def over(
    layout: Layout,
    block: int | None,
    *,
    kernel: Kernel,
    documents_at_once: int,
    dtype: Any,
    head_dim: int,
) -> Attend:
    """Attention of packed rows to themselves, as a function of queries, keys and values.

    Every kernel gives the same; where there is padding each gives finite values of its own.

    Args:
      documents_at_once: see `cudnn.attend_documents`.
      dtype, head_dim: of the queries: not every kernel takes all.

    Raises:
      UserError: the kernel does not know the mask (`block`).
    """
    chosen = flash.choose(
        kernel, block=block, length=layout.segments.shape[1], dtype=dtype, head_dim=head_dim
    )
    if chosen in ("reference", "blockwise") or layout.seen is not None:
        mask = visible(layout, layout, block)
        if chosen == "reference":
            return lambda q, k, v: attend(q, k, v, mask)
        return lambda q, k, v: attend_blockwise(q, k, v, mask, block=block)
    if block != 1:
        raise UserError(
            f"attention={kernel}: is causal, and this stack has block={block}; use auto"
        )
    if chosen == "splash":
        return lambda q, k, v: flash.attend_splash(q, k, v, layout.segments)
    documents = cudnn.find_documents(layout.segments, documents_at_once)
    return partial(cudnn.attend_documents, documents=documents, at_once=documents_at_once)
