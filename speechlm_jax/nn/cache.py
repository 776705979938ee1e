"""Keys and values of what each row has read, and attention over them that reads no further.

A row is a request in its slot. Rows differ in length: a row's keys lie at `0 .. filled - 1`, and
nothing beyond them is ever read, whatever stands there.
"""

from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from speechlm_jax.arrays import Array, Float, Int
from speechlm_jax.nn.int8 import Quantised, dequantise, quantise
from speechlm_jax.sharding import platform

KEY_BLOCK = 128  # keys that are read at a time; never a function of the batch
WHOLE = 256  # longest cache that is read whole: on a CPU, a block is a copy


class Turned(NamedTuple):
    """Keys whose numbers stand before their positions, as a CPU multiplies them fastest."""

    values: Float[Array, "kv_heads rows head_dim length"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the keys as others keep them."""
        *heads_rows, head_dim, length = self.values.shape
        return (*heads_rows, length, head_dim)

    @property
    def dtype(self) -> jnp.dtype:
        """Of the keys."""
        return self.values.dtype


# Keys or values of a layer; in int8 each has a scale for each head.
Kept: TypeAlias = Float[Array, "kv_heads rows length head_dim"] | Quantised | Turned


class Cache(NamedTuple):
    """Keys and values of each layer in static shapes, and how many of each row count.

    Heads stand before rows: each head's keys of a row are one block of memory (docs/log.md), and
    the kernels of Pallas take them so. On a CPU keys are `Turned`.
    """

    k: tuple[Kept, ...]
    v: tuple[Kept, ...]
    filled: Int[Array, " rows"]

    @classmethod
    def empty(
        cls,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        rows: int,
        length: int,
        dtype: str = "float32",
    ) -> "Cache":
        """Returns a cache that holds nothing, with room for `length` positions of each row."""

        def zeros(turned: bool) -> Kept:
            if turned:
                return Turned(jnp.zeros((kv_heads, rows, head_dim, length), dtype))
            values = jnp.zeros((kv_heads, rows, length, head_dim), dtype)
            return Quantised(values, jnp.zeros(values.shape[:-1])) if dtype == "int8" else values

        turned = platform() == "cpu" and dtype != "int8"
        k, v = (tuple(zeros(which) for _ in range(layers)) for which in (turned, False))
        return cls(k, v, jnp.zeros(rows, jnp.int32))

    @property
    def length(self) -> int:
        """Positions that a row has room for."""
        return self.k[0].shape[2]

    def take(self, rows: Int[Array, " some"]) -> "Cache":
        """Returns the cache of some rows; a row beyond the last is some other's."""
        k, v = jax.tree.map(lambda x: x.at[:, rows].get(mode="clip"), (self.k, self.v))
        return Cache(k, v, self.filled.at[rows].get(mode="clip"))

    def put(self, rows: Int[Array, " some"], part: "Cache") -> "Cache":
        """Returns the cache with some of its rows replaced; rows beyond the last are dropped."""

        def put(whole: Array, part: Array) -> Array:
            return whole.at[:, rows].set(part, mode="drop")

        filled = self.filled.at[rows].set(part.filled, mode="drop")
        k, v = jax.tree.map(put, (self.k, self.v), (part.k, part.v))
        return Cache(k, v, filled)


def write(
    kept: Kept, new: Float[Array, "rows new kv_heads head_dim"], places: Int[Array, "rows new"]
) -> Kept:
    """Returns keys (or values) with new ones at their places; those beyond `length` are dropped."""
    # Heads are counted out too: a TPU would keep those of a window side by side, and so copy the
    # cache to that layout and back.
    groups, rows = jnp.arange(kept.shape[0])[:, None, None], jnp.arange(places.shape[0])[:, None]
    new = new.transpose(2, 0, 1, 3)
    if isinstance(kept, Turned):
        new = new.astype(kept.dtype)
        return Turned(kept.values.at[groups, rows, :, places].set(new, mode="drop"))
    parts = quantise(new) if isinstance(kept, Quantised) else new.astype(kept.dtype)

    def put(x: Array, part: Array) -> Array:
        return x.at[groups, rows, places].set(part, mode="drop")

    return jax.tree.map(put, kept, parts)


def attend(
    q: Float[Array, "rows queries heads head_dim"],
    k: Kept,
    v: Kept,
    positions: Int[Array, "rows queries"],
    ends: Int[Array, " rows"],
    block: int | None,
) -> Float[Array, "rows queries heads head_dim"]:
    """Attention of the newest positions to all that their rows hold.

    Reads `KEY_BLOCK` keys at a time (of a short cache all), up to the longest row, with a running
    softmax in float32 (Milakov & Gimelshein 2018). A row's result does not change with the length
    of another row: blocks beyond its own add exact zeros.

    Args:
      positions: of the queries.
      ends: keys of each row that count; a row with 0 gets zeros.
      block: attention block, as in `attention.visible`.
    """
    rows, queries, heads, head_dim = q.shape
    groups = k.shape[0]
    shape = (groups, rows, heads // groups, queries)
    split = (q * head_dim**-0.5).reshape(rows, queries, groups, heads // groups, head_dim)
    read = partial(
        _read, split.transpose(2, 0, 3, 1, 4).reshape(groups, rows, -1, head_dim), k, v,
        positions, ends, block,
    )  # fmt: skip
    out = read(clean=False)
    # A weight of 0 hides what stands beyond a row's end, if that is a number. If it is not, all is
    # read once more with zeros there: to write them at each step would take as long as attention.
    spoilt = jnp.any(jnp.isnan(out) & (ends > 0)[:, None, None])
    out = jax.lax.cond(spoilt, lambda: read(clean=True), lambda: out)
    out = jnp.where((ends > 0)[:, None, None], out, 0).astype(q.dtype)
    return out.reshape(*shape, head_dim).transpose(1, 3, 0, 2, 4).reshape(q.shape)


def _read(
    q: Float[Array, "kv_heads rows queries head_dim"],
    k: Kept,
    v: Kept,
    positions: Int[Array, "rows positions"],
    ends: Int[Array, " rows"],
    block: int | None,
    *,
    clean: bool,
) -> Float[Array, "kv_heads rows queries head_dim"]:
    """Attention with the queries of each head of keys one after the other.

    Args:
      clean: whether values beyond the ends are replaced by zeros.
    """
    groups, rows, queries, head_dim = q.shape
    length = k.shape[2]
    size = length if length <= WHOLE else KEY_BLOCK

    def add(number: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, total, out = carry
        # The last block may start earlier, to end with the cache: what was read is masked.
        first = jnp.minimum(number * size, length - size)
        keys, values = (_block(x, first, size) for x in (k, v))
        assert not isinstance(values, Turned), "keys alone are turned"
        values = values.astype(q.dtype)
        places = first + jnp.arange(size)
        real = (places < ends[:, None]) & (places >= number * size)
        seen = real[:, None]
        if block is not None:
            seen = seen & (positions[:, :, None] // block >= places // block)
        repeated = (rows, queries // seen.shape[1], *seen.shape[1:])
        seen = jnp.broadcast_to(seen[:, None], repeated).reshape(rows, -1, size)
        scores = _products(q, keys)
        scores = jnp.where(seen, scores, -1e30)
        highest = jnp.maximum(top, jnp.max(scores, axis=-1))
        weights = jnp.where(seen, jnp.exp(scores - highest[..., None]), 0.0)
        values = jnp.where(real[:, :, None], values, 0) if clean else values
        found = jnp.einsum(
            "grqk,grkd->grqd", weights.astype(q.dtype), values, preferred_element_type=jnp.float32
        )
        less = jnp.exp(top - highest)
        return highest, total * less + jnp.sum(weights, axis=-1), out * less[..., None] + found

    none = jnp.zeros((groups, rows, queries))
    start = (none - 1e30, none, jnp.zeros((groups, rows, queries, head_dim)))
    if size == length:
        _, total, out = add(jnp.int32(0), start)
    else:
        blocks = -(-jnp.max(ends, initial=0) // size)
        _, total, out = jax.lax.fori_loop(0, blocks, add, start)
    return out / jnp.maximum(total, 1e-30)[..., None]


def _block(kept: Kept, first: Array, size: int) -> Float[Array, "..."] | Turned:
    """Keys (or values) of some positions; all of them as they are, where that is all."""
    if size < kept.shape[2]:
        axis = 3 if isinstance(kept, Turned) else 2
        kept = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, size, axis=axis), kept)
    return dequantise(kept) if isinstance(kept, Quantised) else kept


def _products(
    q: Float[Array, "kv_heads rows queries head_dim"], keys: Float[Array, "..."] | Turned
) -> Float[Array, "kv_heads rows queries size"]:
    """Products of queries with keys, in float32."""
    turned = isinstance(keys, Turned)
    equation = "grqd,grdk->grqk" if turned else "grqd,grkd->grqk"
    keys = (keys.values if turned else keys).astype(q.dtype)
    return jnp.einsum(equation, q, keys, preferred_element_type=jnp.float32)
