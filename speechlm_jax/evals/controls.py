"""Controls: each item gets another item's codes; a score that remains does not come from codes."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np

from speechlm_jax.arrays import Int, ndarray

T = TypeVar("T")


def derangement(keys: Sequence[Hashable], *, seed: int) -> Int[ndarray, " items"]:
    """Returns a random permutation `p` with `keys[p[i]] != keys[i]` for every i.

    Items are put in a random order that keeps equal keys together, and rotated by the size of the
    largest group, so no item can land in its own group.

    Raises:
      ValueError: more than half of the items share a key, so there is no such permutation.
    """
    largest = max(Counter(keys).values(), default=1)
    if 2 * largest > len(keys):
        raise ValueError("too few different items to exchange: more than half are alike")
    rng = np.random.default_rng(seed)
    distinct = list(dict.fromkeys(keys))
    rank = dict(zip(distinct, rng.permutation(len(distinct)), strict=True))
    order = np.lexsort((rng.permutation(len(keys)), [rank[key] for key in keys]))
    exchanged = np.empty(len(keys), np.int64)
    exchanged[order] = np.roll(order, largest)
    return exchanged


def exchange(values: Sequence[T], keys: Sequence[Hashable], *, seed: int) -> list[T]:
    """Gives each item the value (its codes, say) of an item with another key (its text, say)."""
    return [values[i] for i in derangement(keys, seed=seed)]
