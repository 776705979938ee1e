"""The embedded engine: a corpus job as deterministic shard tasks, in this process or in workers.

Each shard is written under a temporary name, flushed, hashed, renamed, and then recorded; a shard
whose record matches is skipped. So a job may be killed at any moment: the same call goes on, and
what it leaves is the same bytes. Decision 9 of docs/architecture.md.
"""

import dataclasses
import hashlib
import importlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from speechlm_jax import artifacts
from speechlm_jax.jobs import pool

Result = dict[str, Any] | None
Task = Callable[[int, Path], Result]


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """A task that another process can run: a function by name, and JSON arguments.

    `target` is "module:function"; the function is called as `function(shard, path, **arguments)`,
    writes the file or folder `path`, and returns JSON data to record, or None.
    """

    target: str
    arguments: dict[str, Any]

    def __call__(self, shard: int, path: Path) -> Result:
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)(shard, path, **self.arguments)


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished shard: a file or folder, its hash, and what the task returned."""

    number: int
    path: Path
    sha256: str
    result: Result


def run_shards(
    task: Task,
    *,
    num_shards: int,
    folder: str | Path,
    fingerprint: str,
    workers: int = 0,
    progress: str = "",
) -> list[Shard]:
    """Runs `task` for every shard that is not done; returns all, in order.

    Args:
      task: deterministic; with `workers` it must be a `ShardTask`, whose module imports no JAX
        unless it means to.
      folder: shard n is `<folder>/<n, five digits>`, its record the same with `.json`.
      fingerprint: names task, arguments and inputs; shards of another fingerprint are made anew.
      workers: 0 runs in this process (a warm model); else that many processes.
      progress: the progress bar's words; none if empty.

    Raises:
      UserError: whatever the task raised as such; finished shards are kept.
      RuntimeError: the task failed, or its worker died `pool.ATTEMPTS` times.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder, num_shards)
    done = {n: shard for n in range(num_shards) if (shard := _finished(folder, n, fingerprint))}
    missing = [n for n in range(num_shards) if n not in done]
    with tqdm(
        total=num_shards, initial=len(done), desc=progress, unit="shard", disable=not progress
    ) as bar:

        def finish(shard: Shard) -> None:
            done[shard.number] = shard
            bar.update()

        if workers and missing:
            if not isinstance(task, ShardTask):
                raise TypeError("workers need a ShardTask: another process cannot get a closure")
            job = {**dataclasses.asdict(task), "folder": str(folder), "fingerprint": fingerprint}
            for number in pool.run(job, missing, workers=min(workers, len(missing))):
                finish(_recorded(folder, number))
        else:
            for number in missing:
                finish(run_shard(task, number, folder=folder, fingerprint=fingerprint))
    if missing:
        os.sync()
    return [done[number] for number in range(num_shards)]


def run_shard(task: Task, number: int, *, folder: Path, fingerprint: str) -> Shard:
    """Runs one shard to its end: write, flush, hash, rename, record."""
    path, record = _paths(folder, number)
    temporary = folder / f".{number:05d}.{os.getpid()}.tmp"
    _remove(temporary)
    try:
        result = task(number, temporary)
        _flush(temporary)
        digest = _hash(temporary)
        _remove(record)
        _take_place(temporary, path)
    finally:
        _remove(temporary)
    data = {"fingerprint": fingerprint, "sha256": digest, "result": result}
    artifacts.write_json(record, data)
    return Shard(number, path, digest, result)


def _paths(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / f"{number:05d}", folder / f"{number:05d}.json"


def _recorded(folder: Path, number: int) -> Shard:
    path, record = _paths(folder, number)
    data = artifacts.read_json(record)
    return Shard(number, path, data["sha256"], data["result"])


def _finished(folder: Path, number: int, fingerprint: str) -> Shard | None:
    path, record = _paths(folder, number)
    if not (record.is_file() and path.exists()):
        return None
    data = artifacts.read_json(record)
    if data["fingerprint"] != fingerprint or data["sha256"] != _hash(path):
        return None
    return _recorded(folder, number)


def _take_place(temporary: Path, path: Path) -> None:
    """Renames over `path`, where a worker of a killed run may just have put the same bytes."""
    _remove(path)
    try:
        os.replace(temporary, path)
    except OSError:
        if not path.is_dir():
            raise


def _sweep(folder: Path, num_shards: int) -> None:
    """Removes what a killed run left, and shards of an earlier job that had more of them."""
    for path in folder.iterdir():
        number = path.name.removesuffix(".json")
        beyond = number.isdigit() and int(number) >= num_shards
        if beyond or path.name.endswith(".tmp"):
            _remove(path)


def _hash(path: Path) -> str:
    """The SHA-256 of a file, or of a folder's file names and files."""
    if path.is_file():
        return artifacts.sha256_file(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(path)} {artifacts.sha256_file(file)}\n".encode())
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """Asks the disk to keep a file. Hundreds of small ones wait for the one flush at the job's end:
    until then a shard that a power cut spoilt is found by its hash."""
    if path.is_file():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
