"""For each key and tweak, a bijection that looks random."""

import numpy as np
import pytest

from speechlm_jax.data.permutation import make_key, permute


def whole(size: int, key: int, tweak: int) -> np.ndarray:
    return permute(np.arange(size), size=size, key=key, tweaks=np.full(size, tweak))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 63, 64, 65, 1000, 4097])
def test_is_a_bijection(size):
    for tweak in range(3):
        np.testing.assert_array_equal(
            np.sort(whole(size, make_key(1, "a"), tweak)), np.arange(size)
        )


def test_keys_and_tweaks_give_other_orders():
    orders = {tuple(whole(20, make_key(seed), tweak)) for seed in range(5) for tweak in range(5)}
    assert len(orders) == 25


def test_every_place_is_equally_likely():
    """Chi-square of where each of 6 elements goes, over 3,000 epochs (25 degrees of freedom)."""
    epochs = 3000
    positions, tweaks = np.tile(np.arange(6), epochs), np.repeat(np.arange(epochs), 6)
    places = permute(positions, size=6, key=make_key("x"), tweaks=tweaks).reshape(epochs, 6)
    counts = np.stack([np.bincount(places[:, i], minlength=6) for i in range(6)])
    chi_square = ((counts - epochs / 6) ** 2 / (epochs / 6)).sum()
    assert chi_square < 52.6  # 0.1%


def test_values_do_not_change():
    """A checkpoint resumes on these values: they may never change."""
    assert whole(10, make_key(0, "text"), 0).tolist() == [2, 9, 1, 8, 0, 7, 4, 3, 5, 6]
    assert permute(
        np.array([0, 1]), size=10**12, key=make_key(0, "text"), tweaks=np.array([0, 1])
    ).tolist() == [190516258701, 521872631466]
