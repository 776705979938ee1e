"""Keys and values of what each row has read, and attention over them that reads no further.

A row is a request in its slot. Rows differ in length: a row's keys lie at `0 .. filled - 1`, and
nothing beyond them is ever read, whatever stands there.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from speechlm_jax.arrays import Array, Float, Int

KEY_BLOCK = 128  # keys that are read at a time; never a function of the batch


class Cache(NamedTuple):
    """Keys and values of each layer in static shapes, and how many of each row count.

    Heads stand before rows: each head's keys of a row are one block of memory (docs/log.md), and
    the kernels of Pallas take them so.
    """

    k: tuple[Float[Array, "kv_heads rows length head_dim"], ...]
    v: tuple[Float[Array, "kv_heads rows length head_dim"], ...]
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

        def zeros() -> tuple[Array, ...]:
            shape = (kv_heads, rows, length, head_dim)
            return tuple(jnp.zeros(shape, dtype) for _ in range(layers))

        return cls(zeros(), zeros(), jnp.zeros(rows, jnp.int32))

    @property
    def length(self) -> int:
        """Positions that a row has room for."""
        return self.k[0].shape[2]

    def take(self, rows: Int[Array, " some"]) -> "Cache":
        """Returns the cache of some rows; a row beyond the last is some other's."""
        pick = lambda x: x.at[:, rows].get(mode="clip")  # noqa: E731
        k, v = (tuple(map(pick, each)) for each in (self.k, self.v))
        return Cache(k, v, self.filled.at[rows].get(mode="clip"))

    def put(self, rows: Int[Array, " some"], part: "Cache") -> "Cache":
        """Returns the cache with some of its rows replaced; rows beyond the last are dropped."""

        def put(whole: tuple[Array, ...], parts: tuple[Array, ...]) -> tuple[Array, ...]:
            pairs = zip(whole, parts, strict=True)
            return tuple(x.at[:, rows].set(part, mode="drop") for x, part in pairs)

        filled = self.filled.at[rows].set(part.filled, mode="drop")
        return Cache(put(self.k, part.k), put(self.v, part.v), filled)


def write(
    kept: Float[Array, "kv_heads rows length head_dim"],
    new: Float[Array, "rows new kv_heads head_dim"],
    places: Int[Array, "rows new"],
) -> Float[Array, "kv_heads rows length head_dim"]:
    """Returns keys (or values) with new ones at their places; those beyond `length` are dropped."""
    # Heads are counted out too: a TPU would keep those of a window side by side, and so copy the
    # cache to that layout and back.
    groups, rows = jnp.arange(kept.shape[0])[:, None, None], jnp.arange(places.shape[0])[:, None]
    new = new.transpose(2, 0, 1, 3).astype(kept.dtype)
    return kept.at[groups, rows, places].set(new, mode="drop")


def attend(
    q: Float[Array, "rows queries heads head_dim"],
    k: Float[Array, "kv_heads rows length head_dim"],
    v: Float[Array, "kv_heads rows length head_dim"],
    positions: Int[Array, "rows queries"],
    ends: Int[Array, " rows"],
    block: int | None,
) -> Float[Array, "rows queries heads head_dim"]:
    """Attention of the newest positions to all that their rows hold.

    Reads `KEY_BLOCK` keys at a time, up to the longest row, with a running softmax in float32
    (Milakov & Gimelshein 2018). A row's result does not change with the length of another row:
    blocks beyond its own add exact zeros.

    Args:
      positions: of the queries.
      ends: keys of each row that count; a row with 0 gets zeros.
      block: attention block, as in `attention.visible`.
    """
    rows, queries, heads, head_dim = q.shape
    groups, _, length, _ = k.shape
    size = min(KEY_BLOCK, length)
    shape = (groups, rows, heads // groups, queries)
    q = (q * head_dim**-0.5).reshape(rows, queries, groups, heads // groups, head_dim)
    q = q.transpose(2, 0, 3, 1, 4).reshape(groups, rows, -1, head_dim)

    def read(number: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, total, out = carry
        # The last block may start earlier, to end with the cache: what was read is masked.
        first = jnp.minimum(number * size, length - size)
        keys, values = (jax.lax.dynamic_slice_in_dim(x, first, size, axis=2) for x in (k, v))
        places = first + jnp.arange(size)
        real = (places < ends[:, None]) & (places >= number * size)
        seen = real[:, None]
        if block is not None:
            seen = seen & (positions[:, :, None] // block >= places // block)
        seen = jnp.broadcast_to(seen[:, None], (rows, heads // groups, queries, size))
        seen = seen.reshape(rows, -1, size)
        scores = jnp.einsum(
            "grqd,grkd->grqk", q, keys.astype(q.dtype), preferred_element_type=jnp.float32
        )
        scores = jnp.where(seen, scores, -1e30)
        highest = jnp.maximum(top, jnp.max(scores, axis=-1))
        weights = jnp.where(seen, jnp.exp(scores - highest[..., None]), 0.0)
        values = jnp.where(real[:, :, None], values, 0).astype(q.dtype)
        found = jnp.einsum(
            "grqk,grkd->grqd", weights.astype(q.dtype), values, preferred_element_type=jnp.float32
        )
        less = jnp.exp(top - highest)
        return highest, total * less + jnp.sum(weights, axis=-1), out * less[..., None] + found

    start = (
        jnp.full((groups, rows, shape[2] * queries), -1e30),
        jnp.zeros((groups, rows, shape[2] * queries)),
        jnp.zeros((groups, rows, shape[2] * queries, head_dim)),
    )
    blocks = -(-jnp.max(ends, initial=0) // size)
    _, total, out = jax.lax.fori_loop(0, blocks, read, start)
    out = (out / jnp.maximum(total, 1e-30)[..., None]).astype(q.dtype)
    out = out.reshape(*shape, head_dim).transpose(1, 3, 0, 2, 4)
    return out.reshape(rows, queries, heads, head_dim)
