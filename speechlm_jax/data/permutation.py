"""Permutes 0 .. size-1 pseudo-randomly by a key, one element at a time: no table, no state.

Grain ships `index_shuffle` for the same purpose. This one is ours because checkpoints depend on its
values (which may not change with a library's version) and because it takes arrays.
"""

import hashlib

import numpy as np

from speechlm_jax.arrays import Int, UInt, ndarray

ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def make_key(*parts: str | int) -> int:
    """Returns a 64-bit key that is derived from its parts."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def mix(values: UInt[ndarray, " batch"]) -> UInt[ndarray, " batch"]:
    """Scrambles 64-bit words: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014)."""
    values = values.astype(np.uint64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permute(
    positions: Int[ndarray, " batch"], *, size: int, key: int, tweaks: Int[ndarray, " batch"]
) -> Int[ndarray, " batch"]:
    """Returns the new place of each position; each (key, tweak) is a bijection of 0 .. size-1.

    A balanced Feistel network permutes a power of four that holds `size`; a result outside is sent
    through again until it falls inside (Black and Rogaway, CT-RSA 2002, "cycle walking").
    """
    # At least 64 values: with fewer, the halves have too few bits for the rounds to differ.
    half = max(3, (max(size - 1, 1).bit_length() + 1) // 2)
    keys = mix(np.uint64(key) + tweaks.astype(np.uint64) * _GOLDEN)
    result = _feistel(positions.astype(np.uint64), keys, half)
    outside = np.flatnonzero(result >= size)
    while outside.size:
        result[outside] = _feistel(result[outside], keys[outside], half)
        outside = outside[result[outside] >= size]
    return result.astype(np.int64)


def _feistel(
    values: UInt[ndarray, " batch"], keys: UInt[ndarray, " batch"], half: int
) -> UInt[ndarray, " batch"]:
    bits, mask = np.uint64(half), np.uint64(2**half - 1)
    left, right = values >> bits, values & mask
    for number in range(1, ROUNDS + 1):
        # Array times array: numpy warns when a scalar product wraps, and it has to wrap.
        round_keys = keys + np.full_like(keys, number) * _GOLDEN
        left, right = right, left ^ (mix(right ^ mix(round_keys)) & mask)
    return (left << bits) | right
