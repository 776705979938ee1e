"""Attention over a cache against plain attention in NumPy; rows are alone in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from speechlm_jax.nn.cache import KEY_BLOCK, Cache, Turned, attend, write

HEADS, GROUPS, DIM, LENGTH = 4, 2, 8, 2 * KEY_BLOCK + 44
RUN = jax.jit(attend, static_argnames="block")
ENDS = (0, 1, KEY_BLOCK - 1, KEY_BLOCK, KEY_BLOCK + 1, 2 * KEY_BLOCK + 9, LENGTH)


def arrays(ends, queries, dtype=jnp.float32):
    """Queries at the last positions of their rows, keys and values; NaN beyond the ends."""
    random = np.random.default_rng(0)
    rows = len(ends)
    q = random.normal(size=(rows, queries, HEADS, DIM))
    k, v = random.normal(size=(2, GROUPS, rows, LENGTH, DIM))
    for row, end in enumerate(ends):
        k[:, row, end:], v[:, row, end:] = np.nan, np.nan
    positions = np.array(ends)[:, None] - queries + np.arange(queries)
    return (
        *(jnp.array(x, dtype) for x in (q, k, v)),
        jnp.array(np.maximum(positions, 0), jnp.int32),
        jnp.array(ends, jnp.int32),
    )


def plain(q, k, v, positions, ends, block):
    """Row by row, head by head."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for row, end in enumerate(np.asarray(ends)):
        for query, position in enumerate(np.asarray(positions)[row]):
            seen = np.arange(end)
            if block is not None:
                seen = seen[seen // block <= position // block]
            for head in range(HEADS if len(seen) else 0):
                keys, values = (x[head // (HEADS // GROUPS), row, seen] for x in (k, v))
                weights = softmax(keys @ q[row, query, head] * DIM**-0.5)
                out[row, query, head] = weights @ values
    return out


@pytest.mark.parametrize("block", [1, 4, None])
@pytest.mark.parametrize("queries", [1, 5])
def test_a_row_attends_to_what_it_holds_and_no_further(block, queries):
    given = arrays(ENDS, queries)
    np.testing.assert_allclose(RUN(*given, block=block), plain(*given, block), atol=2e-6)


@pytest.mark.parametrize("length", [LENGTH, 40])
@pytest.mark.parametrize("queries", [1, 5])
def test_turned_keys_are_the_same_keys(length, queries):
    q, k, v, positions, ends = arrays(ENDS, queries)
    k, v, ends = k[:, :, :length], v[:, :, :length], jnp.minimum(ends, length)
    turned = Turned(k.swapaxes(2, 3))
    assert turned.shape == k.shape
    expected = RUN(q, k, v, positions, ends, block=1)
    np.testing.assert_allclose(RUN(q, turned, v, positions, ends, block=1), expected, atol=2e-6)
    new, places = jnp.ones((len(ENDS), 2, GROUPS, DIM)), jnp.array([[3, length]] * len(ENDS))
    written = write(turned, new, places).values.swapaxes(2, 3)
    np.testing.assert_array_equal(written, write(k, new, places))


def test_a_result_does_not_change_with_the_length_of_other_rows():
    q, k, v, positions, ends = arrays(ENDS, 1)
    together = RUN(q, k, v, positions, ends, block=1)
    for row, end in enumerate(ENDS):
        others = jnp.where(jnp.arange(len(ENDS)) == row, end, 0)
        alone = RUN(q, k, v, positions, others, block=1)
        np.testing.assert_array_equal(alone[row], together[row])


def test_bfloat16_sums_in_float32():
    given = arrays(ENDS, 1, jnp.bfloat16)
    got = RUN(*given, block=1)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float32), plain(*given, 1), atol=0.02)


def some_cache(rows=5):
    random = np.random.default_rng(1)
    k, v = (tuple(jnp.array(random.normal(size=(GROUPS, rows, 6, DIM))) for _ in range(3))
            for _ in range(2))  # fmt: skip
    return Cache(k, v, jnp.arange(rows, dtype=jnp.int32))


def test_rows_that_are_taken_and_put_back_change_nothing_else():
    cache, rows = some_cache(), jnp.array([3, 0, 5])
    part = cache.take(rows)
    assert part.filled.tolist()[:2] == [3, 0]
    changed = jax.tree.map(lambda x: x + 1, part)
    put = cache.put(rows, changed)
    for old, new in zip((*cache.k, *cache.v), (*put.k, *put.v), strict=True):
        np.testing.assert_array_equal(new[:, [1, 2, 4]], old[:, [1, 2, 4]])
        np.testing.assert_array_equal(new[:, [3, 0]], old[:, [3, 0]] + 1)
    assert put.filled.tolist() == [1, 1, 2, 4, 4]


def test_what_is_written_beyond_the_length_is_dropped():
    kept = some_cache().k[0]
    new = jnp.ones((5, 2, GROUPS, DIM))
    places = jnp.array([[0, 1], [4, 5], [5, 6], [6, 7], [6, 6]])
    expected = np.array(kept)
    for row, place in ((0, 0), (0, 1), (1, 4), (1, 5), (2, 5)):
        expected[:, row, place] = 1
    np.testing.assert_array_equal(write(kept, new, places), expected)
