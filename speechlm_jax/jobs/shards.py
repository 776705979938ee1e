"""Runs a corpus job as deterministic shard tasks, in this process or in workers.

A shard is committed whole (`speechlm_jax.jobs.commit`), and a finished one is skipped. So a job may
be killed at any moment: the same call continues, and leaves the same bytes. Decision 9 of
docs/architecture.md.

`run_shards` makes a known number of shards, in worker processes if asked; `iter_shards` takes their
inputs one by one, and runs in this process, where a model may be loaded.
"""

import dataclasses
import functools
import hashlib
import importlib
import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from speechlm_jax import artifacts
from speechlm_jax.jobs import pool
from speechlm_jax.jobs.commit import Result, Shard, ShardFolder

Input = TypeVar("Input")
Task = Callable[[int, Path], Result]


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """A task that another process can run: the name of a function, and JSON arguments.

    `target` is "module:function"; the function is called as `function(shard, path, **arguments)`,
    writes the file or folder `path`, and returns JSON data to record, or None.
    """

    target: str
    arguments: dict[str, Any]

    def __call__(self, shard: int, path: Path) -> Result:
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)(shard, path, **self.arguments)


def run_shards(
    task: Task,
    *,
    num_shards: int,
    folder: str | Path,
    fingerprint: str,
    workers: int = 0,
    progress: str = "",
) -> list[Shard]:
    """Runs `task` for every shard that is not finished; returns all, in order.

    Args:
      task: deterministic; with `workers` it must be a `ShardTask`, whose module imports JAX only on
        purpose.
      num_shards: number of shards.
      folder: shard n is `<folder>/<n, five digits>`, its record the same with `.json`.
      fingerprint: names task, arguments and inputs; shards of another fingerprint are made again.
      workers: number of worker processes; 0 runs in this process (a loaded model).
      progress: label of the progress bar; no bar if empty.

    Raises:
      UserError: the task raised it; finished shards are kept.
      RuntimeError: the task failed, or its worker died `pool.ATTEMPTS` times.
    """
    numbers = range(num_shards)
    if workers:
        shards = _in_workers(task, numbers, ShardFolder(Path(folder), fingerprint), workers)
    else:
        shards = iter_shards(task, numbers, folder=folder, fingerprint=fingerprint)
    with tqdm(
        shards, total=num_shards, desc=progress, unit="shard", disable=not progress
    ) as finished:
        done = {shard.number: shard for shard in finished}
    return [done[number] for number in numbers]


def iter_shards(
    task: Callable[[Input, Path], Result],
    inputs: Iterable[Input],
    *,
    folder: str | Path,
    fingerprint: str,
    into: str | Path | None = None,
) -> Iterator[Shard]:
    """Runs `task(input, path)` in this process for every shard that is not finished; yields all.

    Args:
      task: deterministic; writes the file or folder `path`, and returns JSON data to record.
      inputs: inputs of the shards, in order. They are taken one by one, also those of finished
        shards, so that their number need not be known.
      folder, fingerprint: as in `run_shards`; the fingerprint names the inputs too.
      into: folder to which the files of each shard, a folder without others, are moved under their
        own names. `folder` then holds only the records.

    Raises:
      Whatever the task or the inputs raise; finished shards are kept.
    """
    place = ShardFolder(Path(folder), fingerprint, None if into is None else Path(into))
    place.open()
    number, made = -1, None
    for number, given in enumerate(inputs):
        shard = place.finished(number)
        if shard is None:
            shard = made = place.make(number, functools.partial(task, given))
        yield shard
    place.close(number + 1, made)


def resume(
    place: ShardFolder, inputs: Iterator[Input], name: Callable[[Input], str]
) -> tuple[list[Shard], Iterator[Input]]:
    """Returns the finished shards at the beginning of a job, and the inputs that they leave.

    For jobs whose shards take as many of a stream of inputs as they will. The result of a task has
    `Taken.record`: how many it took, and a digest of their names. From the first shard on that is
    not finished, or took other inputs, all shards are to be made (`ShardFolder.make`).
    """
    shards: list[Shard] = []
    while (shard := place.finished(len(shards))) is not None and shard.result:
        again, taken = Taken(), list(itertools.islice(inputs, shard.result["inputs"]))
        for one in taken:
            again.add(name(one))
        if again.record.items() - shard.result.items():
            return shards, itertools.chain(taken, inputs)
        shards.append(shard)
    return shards, inputs


class Taken:
    """The inputs that a shard took, without a list of them."""

    def __init__(self) -> None:
        self.inputs = 0
        self._digest = hashlib.sha256()

    def add(self, name: str) -> None:
        """Adds an input by a name that differs where its outcome might."""
        self.inputs += 1
        self._digest.update(name.encode(errors="surrogateescape") + b"\n")

    @property
    def record(self) -> dict[str, Any]:
        """The fields of the shard's result."""
        return {"inputs": self.inputs, "names": self._digest.hexdigest()}


def _in_workers(task: Task, numbers: range, place: ShardFolder, workers: int) -> Iterator[Shard]:
    """Yields the finished shards, then the others as worker processes finish them."""
    place.open()
    missing, made = [], None
    for number in numbers:
        shard = place.finished(number)
        if shard is None:
            missing.append(number)
        else:
            yield shard
    if missing:
        if not isinstance(task, ShardTask):
            raise TypeError("workers need a ShardTask: another process cannot get a closure")
        job = {
            **dataclasses.asdict(task), "folder": str(place.folder),
            "fingerprint": place.fingerprint,
        }  # fmt: skip
        for number in pool.run(job, missing, workers=min(workers, len(missing))):
            made = place.recorded(number)
            yield made
    place.close(len(numbers), made)


def write_inputs(folder: Path, rows: Sequence[dict[str, Any]], *, rows_per_shard: int) -> None:
    """Writes the rows of each shard to a file of its own, so that a worker reads no others."""
    for shard, first in enumerate(range(0, len(rows), rows_per_shard)):
        artifacts.write_jsonl(_input_file(folder, shard), rows[first : first + rows_per_shard])


def read_input(folder: str | Path, shard: int) -> Iterator[dict[str, Any]]:
    """Yields the rows of a shard, as `write_inputs` wrote them."""
    return artifacts.read_jsonl(_input_file(Path(folder), shard))


def _input_file(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05d}.jsonl"


def join_files(parts: Iterable[Path], path: Path) -> None:
    """Writes one file that joins the files `parts` in order, whole or not at all."""
    with artifacts.atomic_file(path) as file:
        for part in parts:
            with open(part, "rb") as opened:
                shutil.copyfileobj(opened, file)


def total(shards: Iterable[Shard], name: str) -> Any:
    """Returns the sum of a number that the task returned for each shard."""
    return sum(shard.result[name] for shard in shards if shard.result)
