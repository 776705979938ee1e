"""A set of ids of a vocabulary, as ranges: small, comparable, and as exact as a mask."""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from speechlm_jax.arrays import Bool, Int, ndarray


@dataclasses.dataclass(frozen=True)
class IdSet:
    """Ids as sorted half-open ranges that do not touch each other.

    Attributes:
      ranges: (first id, one past the last id) of each range.
    """

    ranges: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        edges = [edge for part in self.ranges for edge in part]
        if edges and (edges[0] < 0 or any(a >= b for a, b in zip(edges, edges[1:], strict=False))):
            raise ValueError(f"{self.ranges}: no sorted ranges of ids from 0 on that stand apart")

    @classmethod
    def of(cls, ids: Iterable[int]) -> "IdSet":
        """Returns the set of these ids, in any order and number."""
        ranges: list[tuple[int, int]] = []
        for number in sorted(set(map(int, ids))):
            if ranges and ranges[-1][1] == number:
                ranges[-1] = (ranges[-1][0], number + 1)
            else:
                ranges.append((number, number + 1))
        return cls(tuple(ranges))

    @classmethod
    def of_mask(cls, mask: Bool[ndarray, " vocab"]) -> "IdSet":
        """Returns the set of the ids at which a mask is true."""
        edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
        return cls(tuple(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)))

    def mask(self, size: int) -> Bool[ndarray, " vocab"]:
        """Returns a mask over a vocabulary of `size` ids; ids beyond it are left out."""
        mask = np.zeros(size, bool)
        for first, end in self.ranges:
            mask[first:end] = True
        return mask

    def to_array(self) -> Int[ndarray, " ids"]:
        """Returns the ids in ascending order."""
        parts = [np.arange(*part, dtype=np.int32) for part in self.ranges]
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)

    @property
    def end(self) -> int:
        """One past the largest id; 0 of an empty set."""
        return self.ranges[-1][1] if self.ranges else 0

    def __len__(self) -> int:
        return sum(end - first for first, end in self.ranges)

    def __iter__(self) -> Iterator[int]:
        for part in self.ranges:
            yield from range(*part)

    def __contains__(self, number: int) -> bool:
        return any(first <= number < end for first, end in self.ranges)

    def __le__(self, other: "IdSet") -> bool:
        """Whether the other set has every id of this one."""
        return all(
            any(first <= mine[0] and mine[1] <= end for first, end in other.ranges)
            for mine in self.ranges
        )
