"""Properties of speechlm_jax.evals.controls."""

import numpy as np
import pytest

from speechlm_jax.evals.controls import derangement, exchange


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("keys", [list("aabbbcc"), list(range(9)), list("ab"), list("aaabbb")])
def test_every_item_gets_one_of_another_key(keys, seed):
    exchanged = derangement(keys, seed=seed)
    assert sorted(exchanged) == list(range(len(keys)))
    assert all(keys[j] != keys[i] for i, j in enumerate(exchanged))
    assert np.array_equal(exchanged, derangement(keys, seed=seed))


def test_seeds_differ():
    keys = list(range(50))
    assert not np.array_equal(derangement(keys, seed=0), derangement(keys, seed=1))


def test_values_move():
    assert exchange(["x", "y"], ["a", "b"], seed=0) == ["y", "x"]


@pytest.mark.parametrize("keys", [[], ["a"], list("aab")])
def test_too_few_kinds(keys):
    with pytest.raises(ValueError, match="too few"):
        derangement(keys, seed=0)
