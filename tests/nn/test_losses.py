"""Losses against a loop over the documents of a row."""

import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax

from speechlm_jax.nn.losses import cross_entropy, next_ids, packed_loss

IDS = np.array([[5, 6, 7, 8, 9, 3, 0, 0], [1, 2, 3, 4, 5, 6, 7, 8]], np.int32)
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]], np.int32)
MASK = np.array([[1, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 1, 1, 1]], np.float32)
LOGITS = np.random.default_rng(0).normal(size=(2, 8, 10)).astype(np.float32)
BATCH = {"ids": jnp.array(IDS), "segments": jnp.array(SEGMENTS), "loss_mask": jnp.array(MASK)}


def pairs():
    """(row, place, target) of every id that counts."""
    for row, place in np.ndindex(2, 7):
        same = SEGMENTS[row, place] == SEGMENTS[row, place + 1] != 0
        if same and MASK[row, place + 1]:
            yield row, place, int(IDS[row, place + 1])


def test_cross_entropy_is_scipys():
    expected = -np.take_along_axis(log_softmax(LOGITS, -1), IDS[..., None], -1)[..., 0]
    np.testing.assert_allclose(
        cross_entropy(jnp.array(LOGITS), jnp.array(IDS)), expected, rtol=1e-5
    )


def test_the_mask_belongs_to_the_predicted_id_and_documents_do_not_predict_each_other():
    targets, weights = next_ids(*BATCH.values())
    counted = {(row, place): target for row, place, target in pairs()}
    for row, place in np.ndindex(2, 8):
        assert weights[row, place] == ((row, place) in counted)
        if (row, place) in counted:
            assert targets[row, place] == counted[row, place]


def test_packed_loss_sums_what_counts_and_splits_by_target():
    logprobs = log_softmax(LOGITS, -1)
    expected = -sum(logprobs[row, place, target] for row, place, target in pairs())
    lost = packed_loss(jnp.array(LOGITS), jnp.eye(10), BATCH)
    np.testing.assert_allclose(lost.loss_sum, expected, rtol=1e-5)
    assert lost.weight_sum == len(list(pairs()))
    parts = [lost.over(lost.targets > 5), lost.over(lost.targets <= 5)]
    np.testing.assert_allclose(sum(part[0] for part in parts), expected, rtol=1e-5)
    assert sum(part[1] for part in parts) == lost.weight_sum
    first = lost.over(jnp.array([[True], [False]]))
    assert first[1] == sum(row == 0 for row, _, _ in pairs())
