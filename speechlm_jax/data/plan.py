"""The mixture as a plan: row number -> (task, epoch, index), without state and in O(tasks).

A run's data is a function of (plan, row number), so that a restart, another batch size or another
number of hosts does not change it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from speechlm_jax import config as configs
from speechlm_jax.arrays import Int, ndarray
from speechlm_jax.data import permutation
from speechlm_jax.errors import UserError

MAX_PHASE_ROWS = 3_037_000_499  # its square still fits 63 bits


@dataclasses.dataclass(frozen=True)
class TaskRows:
    """Contents of one epoch of a task.

    Attributes:
      name: the task.
      rows: number of packed rows.
      text_tokens: text ids and specials in them.
      speech_tokens: speech ids in them.
      fingerprint: fingerprint of the rows' contents.
    """

    name: str
    rows: int
    text_tokens: int
    speech_tokens: int
    fingerprint: str = ""

    @property
    def tokens(self) -> int:
        """All ids of one epoch, padding excluded."""
        return self.text_tokens + self.speech_tokens


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of training, and each task's number of rows in it, in the plan's order."""

    name: str
    counts: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Rows of the phase."""
        return sum(self.counts)


@dataclasses.dataclass(frozen=True)
class PlanRow:
    """The row at one place of the plan: number of the task, epoch and index in the task's rows."""

    task: int
    epoch: int
    index: int


@dataclasses.dataclass(frozen=True)
class PlanRows:
    """Like `PlanRow`, for many places at once."""

    task: Int[ndarray, " batch"]
    epoch: Int[ndarray, " batch"]
    index: Int[ndarray, " batch"]


@dataclasses.dataclass(frozen=True)
class TaskProgress:
    """A task's contribution so far; tokens are rows times the task's mean tokens per row."""

    name: str
    rows: int
    text_tokens: float
    speech_tokens: float
    epochs: float

    @property
    def tokens(self) -> float:
        """Ids of both modalities."""
        return self.text_tokens + self.speech_tokens


@dataclasses.dataclass(frozen=True)
class MixturePlan:
    """Every row of a run in order; made by `shares.make_plan`.

    In a phase each task has exactly its count of rows, evenly spread. A phase continues a task's
    order where the phase before stopped, so that unseen rows come first. The phase's epochs begin
    there: each visits all of the task's rows once, in an order of its own, and wraps around at the
    order's end.
    """

    tasks: tuple[TaskRows, ...]
    phases: tuple[Phase, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        for phase in self.phases:
            if len(phase.counts) != len(self.tasks) or min(phase.counts, default=0) < 0:
                raise UserError(
                    f"plan: phase {phase.name} must give each of {len(self.tasks)} tasks a count"
                )
            if phase.rows > MAX_PHASE_ROWS:
                raise UserError(
                    f"plan: phase {phase.name} has {phase.rows} rows; "
                    f"split it in phases of at most {MAX_PHASE_ROWS}"
                )
            for task, count in zip(self.tasks, phase.counts, strict=True):
                if count and not task.rows:
                    raise UserError(
                        f"plan: task {task.name} has no rows, phase {phase.name} wants {count}"
                    )

    @property
    def num_rows(self) -> int:
        """Rows of all phases."""
        return sum(phase.rows for phase in self.phases)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the plan; a checkpoint resumes only on the same plan."""
        return configs.fingerprint(self)

    @property
    def described(self) -> dict[str, Any]:
        """Data that the fingerprint is made from, by the names of tasks and phases."""
        tasks = [dataclasses.asdict(task) for task in self.tasks]
        names = [task.name for task in self.tasks]
        return {
            "seed": self.seed,
            "tasks": {task.pop("name"): task for task in tasks},
            "phases": [
                {"name": phase.name, "rows": dict(zip(names, phase.counts, strict=True))}
                for phase in self.phases
            ],
        }

    @cached_property
    def _starts(self) -> np.ndarray:
        """Row numbers at which phases start, then the total."""
        return np.cumsum([0] + [phase.rows for phase in self.phases])

    @cached_property
    def _ranks(self) -> np.ndarray:
        """Number of rows of each task before each phase: "phases tasks"."""
        counts = np.array([phase.counts for phase in self.phases], np.int64)
        return np.cumsum(counts, axis=0) - counts

    @cached_property
    def _keys(self) -> tuple[int, ...]:
        # By name: a task is visited in the same order in any mixture, in any order of tasks.
        return tuple(permutation.make_key(self.seed, task.name) for task in self.tasks)

    def row(self, number: int) -> PlanRow:
        """Returns the row at `number`; raises IndexError outside the plan."""
        rows = self.rows(np.array([number], np.int64))
        return PlanRow(int(rows.task[0]), int(rows.epoch[0]), int(rows.index[0]))

    def rows(self, numbers: Int[ndarray, " batch"]) -> PlanRows:
        """Returns the rows at many numbers, as `row`; takes O(tasks) array operations."""
        numbers = np.asarray(numbers, np.int64)
        if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < self.num_rows:
            raise IndexError(f"row numbers outside 0..{self.num_rows - 1}")
        phase = np.searchsorted(self._starts, numbers, side="right") - 1
        task, rank = np.zeros_like(numbers), np.zeros_like(numbers)
        for i in np.unique(phase):
            here = np.flatnonzero(phase == i)
            task[here], rank[here] = _deal(numbers[here] - self._starts[i], self.phases[i].counts)
        size = np.array([task.rows for task in self.tasks], np.int64)[task]
        epochs_before, begin = np.divmod(self._ranks[phase, task], size)
        epoch, place = epochs_before + rank // size, (begin + rank) % size
        index = np.zeros_like(numbers)
        for k in np.unique(task):
            here = np.flatnonzero(task == k)
            index[here] = permutation.permute(
                place[here], size=self.tasks[k].rows, key=self._keys[k], tweaks=epoch[here]
            )
        return PlanRows(task, epoch, index)

    def progress(self, rows_seen: int) -> tuple[TaskProgress, ...]:
        """Returns each task's contribution after `rows_seen` rows: exact counts, in O(tasks)."""
        seen = [0] * len(self.tasks)
        for phase, start in zip(self.phases, self._starts, strict=False):
            here = min(max(rows_seen - int(start), 0), phase.rows)
            for k, count in enumerate(_counts_before(here, phase.counts)):
                seen[k] += count
        return tuple(
            TaskProgress(
                name=task.name,
                rows=rows,
                text_tokens=task.text_tokens * rows / max(task.rows, 1),
                speech_tokens=task.speech_tokens * rows / max(task.rows, 1),
                epochs=rows / max(task.rows, 1),
            )
            for task, rows in zip(self.tasks, seen, strict=True)
        )

    def phase_at(self, number: int) -> str:
        """Returns the name of the phase that row `number` belongs to."""
        return self.phases[int(np.searchsorted(self._starts, number, side="right")) - 1].name

    def to_json(self) -> dict[str, Any]:
        """Returns plain data that `from_json` reads back."""
        return configs.to_json(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "MixturePlan":
        """Returns the plan that `to_json` wrote; raises UserError if a field is wrong."""
        return configs.from_json(cls, dict(data))


def _deal(slots: Int[ndarray, " batch"], counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the task of each slot of a phase, and the slot's rank within the task.

    Of R slots, the first task, with count c, has those x at which floor((x + 1) c / R) increases,
    and its rank there is floor(x c / R): a straight line drawn in integers (Bresenham), so its
    slots are evenly spread and exactly c. The other tasks share the remaining slots by the same
    rule.
    """
    task, rank = np.zeros_like(slots), np.zeros_like(slots)
    left, places, total = slots, np.arange(len(slots)), sum(counts)
    for k, count in enumerate(counts):
        before = left * count // max(total, 1)
        taken = (left + 1) * count // max(total, 1) > before
        task[places[taken]], rank[places[taken]] = k, before[taken]
        left, places, total = (left - before)[~taken], places[~taken], total - count
    return task, rank


def _counts_before(slots: int, counts: Sequence[int]) -> list[int]:
    """Returns how many of a phase's first `slots` slots each task has, by the rule of `_deal`."""
    found, total = [], sum(counts)
    for count in counts:
        found.append(slots * count // total if total else 0)
        slots, total = slots - found[-1], total - count
    return found
