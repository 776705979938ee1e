"""Causal attention over packed rows by cuDNN, the kernel of NVIDIA GPUs from Hopper on.

JAX's public `jax.nn.dot_product_attention` takes no packed rows, so this file alone calls the
private function beneath it; where that has moved, `refusal` says so and another kernel serves.
Tokamax, to which JAX points, packs no more in its public function: its cuDNN path is that of
`jax.nn`, its own kernels take a dense mask, and it needs Python 3.12 (`docs/log.md`).

cuDNN's memory grows with the most documents that a call may hold. Rows with more take turns: the
first `at_once` documents of each row, then the next, until all have been read.
"""

from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from speechlm_jax.arrays import Array, Bool, Float, Int
from speechlm_jax.errors import UserError
from speechlm_jax.nn.blockwise import kv_for
from speechlm_jax.sharding import BATCH_AXES, axis_size, over_mesh

try:
    from jax._src.cudnn import fused_attention_stablehlo as fused
except ImportError:  # pragma: no cover - a private module may move
    fused: Any = None

Grads: TypeAlias = tuple[Array, Array, Array]

HALVES = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
MOST_HEAD_DIM = 256
# Before, JAX found a document's keys by the number of query heads, also where they are grouped.
GROUPS_SINCE = (0, 11, 1)


class Documents(NamedTuple):
    """Where the documents of packed rows lie.

    Attributes:
      numbers: of the document at each position, from 0; -1 in padding.
      starts, lengths: first position and size of each document; -1 after the last.
      torn: whether a segment of the row comes again after another one.
    """

    numbers: Int[Array, "batch length"]
    starts: Int[Array, "batch most_documents"]
    lengths: Int[Array, "batch most_documents"]
    torn: Bool[Array, " batch"]


def refusal(dtype: Any, head_dim: int) -> str | None:
    """One line that says why cuDNN cannot attend on this process's devices; None where it can."""
    if fused is None:
        return f"JAX {jax.__version__} has no cuDNN attention in jax._src.cudnn"
    if jnp.dtype(dtype) not in HALVES:
        return f"cuDNN attention takes bfloat16 and float16, not {jnp.dtype(dtype)}"
    if head_dim % 8 or head_dim > MOST_HEAD_DIM:
        return f"cuDNN attention takes a head_dim of 8, 16, ... {MOST_HEAD_DIM}, not {head_dim}"
    if not fused.check_compute_capability("9.0"):
        return "cuDNN attention over packed rows needs an NVIDIA GPU of Hopper's kind or newer"
    return None


def find_documents(segments: Int[Array, "batch length"], at_once: int) -> Documents:
    """The documents of rows: runs of one segment, 0 being padding wherever it stands.

    Args:
      at_once: what the number of columns is a multiple of.
    """
    length = segments.shape[1]
    before = jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1]
    after = jnp.pad(segments, ((0, 0), (0, 1)))[:, 1:]
    first = (segments > 0) & (segments != before)
    last = (segments > 0) & (segments != after)

    def places(chosen: Array) -> Array:
        found = jnp.sort(jnp.where(chosen, jnp.arange(length, dtype=jnp.int32), length), axis=1)
        return jnp.pad(found, ((0, 0), (0, -length % at_once)), constant_values=length)

    starts, ends = places(first), places(last)
    none = starts == length
    ids = jnp.sort(segments, axis=1)
    distinct = (ids > 0) & (ids != jnp.pad(ids, ((0, 0), (1, 0)))[:, :-1])
    return Documents(
        numbers=jnp.where(segments > 0, jnp.cumsum(first, axis=1, dtype=jnp.int32) - 1, -1),
        starts=jnp.where(none, -1, starts),
        lengths=jnp.where(none, -1, ends - starts + 1),
        torn=jnp.sum(first, axis=1) > jnp.sum(distinct, axis=1),
    )


def attend_documents(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch length kv_heads head_dim"],
    v: Float[Array, "batch length kv_heads head_dim"],
    documents: Documents,
    *,
    at_once: int,
) -> Float[Array, "batch length heads head_dim"]:
    """Causal grouped-query attention in which documents of a row stay apart; 0 in padding.

    Each device attends for its own rows and heads. A torn row is NaN: cuDNN would take the parts
    of a segment for documents of their own.

    Args:
      documents: `find_documents` with the same `at_once`.
      at_once: documents of a row in a call, 2 or more.

    Raises:
      UserError: cuDNN cannot attend here, or not on this mesh.
    """
    reason = refusal(q.dtype, q.shape[-1])
    if reason is not None:
        raise UserError(f"attention=cudnn: {reason}")
    if axis_size("context") > 1:
        raise UserError("mesh.context: cuDNN attention does not split the length; use context=1")
    shards = axis_size("tensor")
    if q.shape[2] % shards:
        raise UserError(f"mesh.tensor: {q.shape[2]} heads do not divide over {shards} devices")
    k, v = kv_for(shards, q, k, v)
    by_head, rows = PartitionSpec(BATCH_AXES, None, "tensor", None), PartitionSpec(BATCH_AXES)
    run = over_mesh(partial(_attend, at_once=at_once), (*[by_head] * 3, rows), by_head)
    return run(q, k, v, documents)


def _attend(q: Array, k: Array, v: Array, documents: Documents, *, at_once: int) -> Array:
    if q.size >= 2**31:
        raise UserError(
            f"attention=cudnn: {q.shape[0]} rows of {q.shape[1]} positions are more than cuDNN can "
            "address on a device; use more microbatches"
        )
    if jax.__version_info__ < GROUPS_SINCE:
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    length = q.shape[1]
    if length % 2:  # JAX differentiates even lengths alone
        q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
        numbers = jnp.pad(documents.numbers, ((0, 0), (0, 1)), constant_values=-1)
        documents = documents._replace(numbers=numbers)
    out: Any = _turn(q, k, v, documents, 0, at_once)
    if documents.starts.shape[1] > at_once:
        out = _later(out, q, k, v, documents, at_once)
    return jnp.where(documents.torn[:, None, None, None], jnp.nan, out[:, :length])


def _turn(
    q: Array, k: Array, v: Array, documents: Documents, number: int | Array, at_once: int
) -> Array:
    """Attention in the documents of one turn; 0 elsewhere, in the gradients too.

    cuDNN writes nothing where no document is: what lies there is none of ours.
    """
    mine = (documents.numbers // at_once == number)[..., None, None]
    q, k, v = (jnp.where(mine, x, 0) for x in (q, k, v))
    starts, lengths = (
        jax.lax.dynamic_slice_in_dim(x, number * at_once, at_once, axis=1)
        for x in (documents.starts, documents.lengths)
    )
    starts = jnp.pad(starts, ((0, 0), (0, 1)), constant_values=-1)  # a last end would give NaN
    out = fused.dot_product_attention(
        q, k, v, None, None, lengths, lengths, starts, starts,
        scale=q.shape[-1] ** -0.5, mask_type=fused.MaskType.PADDING_CAUSAL,
    )  # fmt: skip
    return jnp.where(mine, out, 0)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _later(out: Array, q: Array, k: Array, v: Array, documents: Documents, at_once: int) -> Any:
    """`out`, to which the turns after the first are added: none where all documents fit into one.

    JAX differentiates no loop of unknown length, so that later turns attend again going back.
    """
    return jax.lax.fori_loop(
        1, _turns(documents, at_once),
        lambda number, out: out + _turn(q, k, v, documents, number, at_once), out,
    )  # fmt: skip


def _forward(
    out: Array, q: Array, k: Array, v: Array, documents: Documents, at_once: int
) -> tuple[Array, tuple]:
    return _later(out, q, k, v, documents, at_once), (q, k, v, documents)


def _backward(at_once: int, saved: tuple, given: Array) -> tuple:
    *qkv, documents = saved

    def add(number: Array, grads: Grads) -> Grads:
        _, pull = jax.vjp(lambda q, k, v: _turn(q, k, v, documents, number, at_once), *qkv)
        return jax.tree.map(jnp.add, grads, pull(given))

    nothing = tuple(jnp.zeros_like(x) for x in qkv)
    grads = jax.lax.fori_loop(1, _turns(documents, at_once), add, nothing)
    return given, *grads, None


_later.defvjp(_forward, _backward)


def _turns(documents: Documents, at_once: int) -> Array:
    return jnp.max(documents.numbers) // at_once + 1
