"""Sets of ids against Python's sets and NumPy's masks."""

import numpy as np
import pytest

from speechlm_jax.id_set import IdSet

SIZE = 40


def some_sets(number=60):
    random = np.random.default_rng(0)
    return [set(random.choice(SIZE, random.integers(0, SIZE + 1), replace=False).tolist())
            for _ in range(number)]  # fmt: skip


@pytest.mark.parametrize("ids", some_sets(12))
def test_every_form_holds_the_same_ids(ids):
    made = IdSet.of([*ids, *ids])
    assert list(made) == sorted(ids) == made.to_array().tolist()
    assert len(made) == len(ids)
    assert made.end == max(ids, default=-1) + 1
    assert [number in made for number in range(SIZE + 2)] == [n in ids for n in range(SIZE + 2)]
    np.testing.assert_array_equal(np.flatnonzero(made.mask(SIZE)), sorted(ids))


def test_a_mask_and_its_set_are_equal_and_hash_alike():
    for ids in some_sets():
        made = IdSet.of(ids)
        again = IdSet.of_mask(made.mask(SIZE))
        assert again == made and hash(again) == hash(made)
        assert again.mask(SIZE).dtype == bool
        assert all(a < b for part in made.ranges for a, b in [part])
        assert all(a[1] < b[0] for a, b in zip(made.ranges, made.ranges[1:], strict=False))


def test_inclusion_is_that_of_sets():
    sets = some_sets()
    for one, other in zip(sets, sets[1:], strict=False):
        for smaller in (one, one & other):
            assert (IdSet.of(smaller) <= IdSet.of(other)) == (smaller <= other)
    assert IdSet() <= IdSet() and not IdSet.of([3]) <= IdSet()


def test_ids_beyond_a_mask_are_left_out():
    assert IdSet(((2, 5), (7, 9))).mask(4).tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    "ranges", [((-1, 2),), ((3, 3),), ((4, 2),), ((0, 4), (4, 6)), ((5, 6), (1, 2))]
)
def test_ranges_that_touch_or_are_not_sorted_are_refused(ranges):
    with pytest.raises(ValueError, match="no sorted ranges"):
        IdSet(ranges)
