"""Pads rows of different lengths into arrays of few static shapes, so that few programs compile."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeVar

import numpy as np

from speechlm_jax.arrays import Int, Shaped, ndarray

Answer = TypeVar("Answer")
# (numbers of the rows, the rows padded, their lengths) -> an answer for each row
Run = Callable[
    [Int[ndarray, " batch"], Shaped[ndarray, "batch length ..."], Int[ndarray, " batch"]],
    Iterable[Answer],
]


def round_up(number: int, multiple: int) -> int:
    """Returns the smallest multiple of `multiple` that is not below `number`."""
    return -(-number // multiple) * multiple


def pad_rows(
    rows: Sequence[np.ndarray | Sequence[int]], size: int, dtype: type = np.int32
) -> tuple[Shaped[ndarray, "batch length ..."], Int[ndarray, " batch"]]:
    """Right-pads rows with zeros to `size`; returns (array, lengths).

    Raises:
      ValueError: a row is longer than `size`.
    """
    lengths = np.array([len(row) for row in rows], np.int32)
    if lengths.size and lengths.max() > size:
        raise ValueError(f"a row of {lengths.max()} does not fit {size}")
    padded = np.zeros((len(rows), size, *np.shape(rows[0])[1:]), dtype)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded, lengths


def run_in_batches(
    rows: Sequence[np.ndarray | Sequence[int]],
    run: Run[Answer],
    *,
    batch_size: int | Mapping[Any, int],
    multiple: int,
    kinds: Sequence[Any] | None = None,
    by_length: bool = False,
    dtype: type = np.int32,
) -> list[Answer]:
    """Runs a function over batches of padded rows; returns its answers in the order of the rows.

    Every batch has `batch_size` rows: an incomplete one repeats its rows, and their answers are
    dropped. Its length is that of its longest row, rounded up to `multiple` (also the minimum).

    Args:
      rows: rows of any lengths.
      run: takes the rows' numbers, the padded rows and their lengths; returns an answer for each,
        which must not depend on padding.
      batch_size: rows of a batch, or of a batch of each kind.
      multiple: number of which the length of a batch is a multiple.
      kinds: kind of each row, comparable; a batch holds rows of one kind.
      by_length: true to batch rows of similar length, false to keep the order given.
      dtype: dtype of the padded rows.
    """
    kinds = [()] * len(rows) if kinds is None else kinds
    order = sorted(range(len(rows)), key=lambda i: (kinds[i], len(rows[i]) if by_length else 0))
    answers: dict[int, Answer] = {}
    for chosen, most in _batches(order, kinds, batch_size):
        numbers = np.resize(chosen, most)
        size = round_up(max(1, *(len(rows[i]) for i in chosen)), multiple)
        padded, lengths = pad_rows([rows[i] for i in numbers], size, dtype)
        answers |= zip(chosen, run(numbers, padded, lengths), strict=False)
    return [answers[i] for i in range(len(rows))]


def _batches(
    order: Sequence[int], kinds: Sequence[Any], batch_size: int | Mapping[Any, int]
) -> Iterator[tuple[list[int], int]]:
    """Yields consecutive numbers of one kind, and the rows of its batches: the most of them."""
    for kind, group in groupby(order, key=lambda i: kinds[i]):
        same, most = list(group), batch_size if isinstance(batch_size, int) else batch_size[kind]
        yield from ((same[i : i + most], most) for i in range(0, len(same), most))
