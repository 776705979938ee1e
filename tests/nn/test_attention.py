"""Attention against a loop; who sees whom against the rule; rotary positions are relative."""

import jax.numpy as jnp
import numpy as np
import pytest

from speechlm_jax.nn.attention import Layout, attend, visible, whole
from speechlm_jax.nn.rotary import rotate

SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1, 1, 1]])
POSITIONS = np.array([[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 5, 6, 7]])


@pytest.mark.parametrize("block", [1, 3, None])
def test_a_query_sees_its_own_document_up_to_its_block(block):
    layout = Layout(jnp.array(SEGMENTS), jnp.array(POSITIONS))
    mask = np.asarray(visible(layout, layout, block))
    for row, query, key in np.ndindex(*mask.shape):
        same = SEGMENTS[row, query] == SEGMENTS[row, key] != 0
        places = POSITIONS[row]
        early = block is None or places[key] // block <= places[query] // block
        assert mask[row, query, key] == (same and early)


def test_attention_equals_a_loop_with_shared_keys():
    random = np.random.default_rng(0)
    q = random.normal(size=(2, 5, 6, 4)).astype(np.float32)
    k, v = random.normal(size=(2, 2, 7, 3, 4)).astype(np.float32)
    mask = random.random((2, 5, 7)) < 0.5
    mask[:, :, 0] = True
    expected = np.zeros_like(q, dtype=np.float64)
    for row, place, head in np.ndindex(2, 5, 6):
        seen, group = np.flatnonzero(mask[row, place]), head // 2
        scores = k[row, seen, group].astype(np.float64) @ q[row, place, head] / np.sqrt(4)
        weights = np.exp(scores - scores.max())
        expected[row, place, head] = weights @ v[row, seen, group] / weights.sum()
    np.testing.assert_allclose(attend(*map(jnp.array, (q, k, v, mask))), expected, atol=1e-5)


def test_a_query_that_sees_nothing_is_finite():
    ones = jnp.ones((1, 2, 1, 4))
    out = attend(1e4 * ones, 1e4 * ones, ones, jnp.zeros((1, 2, 2), bool))
    assert np.isfinite(out).all()


def test_rotary_scores_depend_on_the_distance_alone():
    random = np.random.default_rng(1)
    q, k = jnp.array(random.normal(size=(2, 1, 1, 3, 8)).astype(np.float32))

    def score(at, to):
        turned = [rotate(x, jnp.full((1, 1), p), 100.0) for x, p in ((q, at), (k, to))]
        return jnp.sum(turned[0] * turned[1], axis=-1)

    np.testing.assert_allclose(score(9, 4), score(25, 20), atol=1e-4)
    assert not np.allclose(score(9, 4), score(9, 5), atol=1e-2)
    np.testing.assert_allclose(rotate(q, jnp.zeros((1, 1), int), 100.0), q, atol=1e-6)
    turned = rotate(q, jnp.full((1, 1), 77), 100.0)
    np.testing.assert_allclose(
        jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(q, axis=-1), rtol=1e-5
    )


def test_whole_marks_padding_as_segment_0():
    layout = whole(jnp.array([3, 0, 4]), 4)
    np.testing.assert_array_equal(layout.segments, [[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(layout.positions, [[0, 1, 2, 3]] * 3)
