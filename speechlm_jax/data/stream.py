"""Turns rows into batches: Grain reads the rows of a plan by number.

A stream has no state: it starts at any row, for any batch size and number of hosts, and gives the
same rows. So it knows the rows to come, and announces them where rows are fetched from a bucket.
Nothing here imports TensorFlow or SeqIO.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import SupportsIndex

import grain
import numpy as np

from speechlm_jax.arrays import Int, ndarray
from speechlm_jax.data.plan import MixturePlan, PlanRows
from speechlm_jax.data.rows import RowShards
from speechlm_jax.errors import UserError

Batch = dict[str, np.ndarray]
Place = tuple[RowShards, int]  # shards of a row, and its number in them
FIELDS = ("ids", "segments", "positions", "loss_mask")


def make_batches(
    plan: MixturePlan,
    shards: Mapping[str, RowShards],
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 2,
) -> Callable[[int], Iterator[Batch]]:
    """Returns the function from rows already seen to this host's batches from there on.

    A global batch is the next `batch_size` rows of the plan; host p takes the p-th of
    `process_count` equal parts of it. Rows at the end that fill no batch are left out.

    Args:
      plan: plan of the rows and their order.
      shards: rows by task name; every task of the plan that has rows in it.
      batch_size: rows of the global batch.
      process_index: index of this host.
      process_count: number of hosts.
      prefetch: batches read ahead by a thread; 0 reads in the caller's thread.

    Returns:
      rows_seen -> iterator of batches: `ids`, `segments`, `positions` (int32) and `loss_mask`
      (float32), each "batch length", and `task` (int32, " batch"): numbers of `plan.tasks`.

    Raises:
      UserError: shards are missing or not those the plan was made for, or the batch does not divide
        by the hosts.
    """
    _check(plan, shards)
    if batch_size % process_count:
        raise UserError(f"batch_size {batch_size} does not divide by the {process_count} hosts")
    part = batch_size // process_count
    for task in plan.tasks:
        if task.name in shards:
            shards[task.name].batches_ahead(part)

    def batches(rows_seen: int) -> Iterator[Batch]:
        source = _PlanBatches(
            plan, shards, first=rows_seen + process_index * part, part=part, batch_size=batch_size,
            size=max(plan.num_rows - rows_seen, 0) // batch_size,
        )  # fmt: skip
        return _iterate(source, prefetch)

    return batches


def read_batches(
    shards: RowShards,
    *,
    batch_size: int,
    task: int = 0,
    most_rows: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 0,
) -> Iterator[Batch]:
    """Yields the rows of one task once, in order: held-out data. Padding fills the last batch.

    Of a batch, host p takes the p-th of `process_count` equal parts, so that all hosts get the same
    number of batches; a part of the last one may be padding alone.

    Args:
      shards: the task's rows.
      batch_size: rows of a batch, over all hosts.
      task: number of the task in the batches' `task`.
      most_rows: number of rows to read, evenly spread over all; None reads all.
      process_index: index of this host.
      process_count: number of hosts.
      prefetch: batches read ahead by a thread; 0 reads in the caller's thread.

    Raises:
      UserError: the batch does not divide by the hosts.
    """
    if batch_size % process_count:
        raise UserError(f"batch_size {batch_size} does not divide by the {process_count} hosts")
    size = len(shards) if most_rows is None else min(most_rows, len(shards))
    numbers = np.arange(size) * len(shards) // max(size, 1)
    part = batch_size // process_count
    batches = [
        numbers[start : start + part]
        for start in range(process_index * part, size + process_index * part, batch_size)
    ]
    return _iterate(_RowBatches(shards, batches, task=task, rows=part), prefetch)


def empty_row(length: int) -> dict[str, np.ndarray]:
    """Returns a row of padding: weight 0 in any loss."""
    row: dict[str, np.ndarray] = {name: np.zeros(length, np.int32) for name in FIELDS[:3]}
    return row | {"loss_mask": np.zeros(length, np.float32)}


class _PlanBatches:
    """A Grain source whose elements are this host's batches, so that a batch is planned at once."""

    def __init__(
        self,
        plan: MixturePlan,
        shards: Mapping[str, RowShards],
        *,
        first: int,
        part: int,
        batch_size: int,
        size: int,
    ):
        self._plan, self._shards = plan, shards
        self._first, self._part, self._batch_size, self._size = first, part, batch_size, size
        used = [shards[task.name] for task in plan.tasks if task.name in shards]
        self._look_ahead = _LookAhead(self._places, used, rows=part, size=size)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, number: SupportsIndex) -> Batch:
        planned = self._planned(operator.index(number))
        places = list(self._whence(planned))
        self._look_ahead(operator.index(number), places)
        rows = [shards[index] for shards, index in places]
        return _stack(rows) | {"task": planned.task.astype(np.int32)}

    def _planned(self, number: int) -> PlanRows:
        start = self._first + number * self._batch_size
        return self._plan.rows(np.arange(start, start + self._part))

    def _whence(self, planned: PlanRows) -> Iterator[Place]:
        for task, index in zip(planned.task, planned.index, strict=True):
            yield self._shards[self._plan.tasks[task].name], int(index)

    def _places(self, number: int) -> Iterator[Place]:
        return self._whence(self._planned(number))


class _RowBatches:
    """A Grain source of batches of one task's rows, by number, padded to `rows` rows."""

    def __init__(
        self, shards: RowShards, numbers: Sequence[Int[ndarray, " rows"]], *, task: int, rows: int
    ):
        self._shards, self._numbers, self._task, self._rows = shards, numbers, task, rows
        self._look_ahead = _LookAhead(self._places, [shards], rows=rows, size=len(self))

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: SupportsIndex) -> Batch:
        places = list(self._places(operator.index(number)))
        self._look_ahead(operator.index(number), places)
        rows = [shards[index] for shards, index in places]
        rows += [empty_row(self._shards.length)] * (self._rows - len(rows))
        return _stack(rows) | {"task": np.full(self._rows, self._task, np.int32)}

    def _places(self, number: int) -> Iterator[Place]:
        return ((self._shards, int(index)) for index in self._numbers[number])


class _LookAhead:
    """Prefetches rows of upcoming batches; requests a row again only if it was evicted."""

    def __init__(
        self,
        places: Callable[[int], Iterator[Place]],
        shards: Sequence[RowShards],
        *,
        rows: int,
        size: int,
    ):
        """`places` returns the rows of a batch; there are `size` batches of `rows` rows each."""
        ahead = [batches for each in shards if (batches := each.batches_ahead(rows))]
        self._ahead = min(ahead, default=0)
        self._places, self._size = places, size
        self._told = self._told_again = 0  # batches

    def __call__(self, number: int, places: Sequence[Place]) -> None:
        """Requests rows ahead; called before batch `number`, with rows at `places`, is read."""
        if not self._ahead:
            return
        end = min(number + self._ahead, self._size)
        if number < self._told and not all(at.is_at_hand(index) for at, index in places):
            # Evicted: other rows (held-out ones) overwrote these, and those after them. All are
            # requested again, but not for each batch, as the cache may be too small.
            if number < self._told_again:
                _expect(places)
            else:
                self._told, self._told_again = number, end
        for batch in range(max(number, self._told), end):
            _expect(self._places(batch))
        self._told = max(self._told, end)


def _expect(places: Iterable[Place]) -> None:
    for shards, index in places:
        shards.expect([index])


def _stack(rows: list[dict[str, np.ndarray]]) -> Batch:
    return {name: np.stack([row[name] for row in rows]) for name in FIELDS}


def _iterate(source: _PlanBatches | _RowBatches, prefetch: int) -> Iterator[Batch]:
    if not len(source):
        return iter(())
    # One thread at most: more compete for the interpreter and take four times as long.
    options = grain.ReadOptions(num_threads=min(prefetch, 1), prefetch_buffer_size=prefetch)
    rows = grain.MapDataset.source(source)  # pyright: ignore[reportArgumentType]  # len and [] do
    return iter(rows.to_iter_dataset(options))


def _check(plan: MixturePlan, shards: Mapping[str, RowShards]) -> None:
    wanted = {
        task.name: task
        for k, task in enumerate(plan.tasks)
        if any(phase.counts[k] for phase in plan.phases)
    }
    for name, task in wanted.items():
        if name not in shards:
            raise UserError(
                f"task {name}: in the plan, but not among the prepared ones ({', '.join(shards)})"
            )
        found = shards[name]
        if len(found) != task.rows or (task.fingerprint and found.fingerprint != task.fingerprint):
            raise UserError(
                f"{found.folder}: not the rows that the plan was made for ({len(found)} rows, "
                f"{found.fingerprint}; the plan has {task.rows}, {task.fingerprint}); "
                "restore that folder, or start a new run"
            )
    if len({(shards[name].length, shards[name].vocab.fingerprint) for name in wanted}) > 1:
        raise UserError(
            "the plan's tasks have rows of different lengths or vocabularies; prepare them alike"
        )
