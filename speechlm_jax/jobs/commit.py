"""Commits shards to disk: writes each under a temporary name, hashes, renames, then records it.

A shard with a record is whole as long as its bytes have the recorded hash. A job that joins its
output from shards keeps them in `SHARDS` inside the output folder, and calls `clear` once its
manifest is written.
"""

import dataclasses
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts

SHARDS = ".shards"  # in a folder that is not finished
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp", re.DOTALL)  # names made here and in `artifacts`

Result = dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished shard: a file or folder, its hash, and the result of its task."""

    number: int
    path: Path
    sha256: str
    result: Result


@dataclasses.dataclass(frozen=True)
class ShardFolder:
    """The folder of the shards of one job.

    Attributes:
      folder: folder of shards and records.
      fingerprint: fingerprint of the job.
      into: folder of the files of all shards, if a shard has no folder of its own.
    """

    folder: Path
    fingerprint: str
    into: Path | None = None

    def open(self) -> None:
        """Creates the folders; removes shards of other jobs and leftovers of killed runs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.into is not None:
            self.into.mkdir(parents=True, exist_ok=True)
        _remove_temporary(self.folder)
        for number in self._numbers():
            record = self._paths(number)[1]
            if record.is_file() and artifacts.read_json(record)["fingerprint"] != self.fingerprint:
                self._discard(number)

    def close(self, num_shards: int, made: Shard | None) -> None:
        """Removes shards of an earlier call that had more; has the disk keep those that were made.

        `made` is any of those that were made. Shards that are files were flushed one by one.
        """
        for number in self._numbers():
            if number >= num_shards:
                self._discard(number)
        if made is not None and self.into is None and made.path.is_dir():
            os.sync()

    def make(self, number: int, write: Callable[[Path], Result]) -> Shard:
        """Makes one shard: writes, hashes, flushes, renames and records it."""
        path, record = self._paths(number)
        temporary = self.folder / f".{number:05d}.{os.getpid()}.tmp"
        _remove(temporary)
        try:
            result = write(temporary)
            data = {"fingerprint": self.fingerprint, "sha256": _hash(temporary), "result": result}
            self._discard(number)
            if self.into is None:
                _flush(temporary)
                _take_place(temporary, path)
            else:
                data["files"] = _move_files(temporary, self.into)
        finally:
            _remove(temporary)
        artifacts.write_json(record, data)
        return self._shard(number, data)

    def finished(self, number: int) -> Shard | None:
        """Returns a shard that matches its record; None if there is none."""
        path, record = self._paths(number)
        data = artifacts.read_json(record) if record.is_file() else {}
        return self._shard(number, data) if data and self._is_whole(path, data) else None

    def recorded(self, number: int) -> Shard:
        """Returns a shard from its record, unchecked."""
        return self._shard(number, artifacts.read_json(self._paths(number)[1]))

    def _is_whole(self, path: Path, data: dict[str, Any]) -> bool:
        """Returns whether the files of a shard match its record."""
        if self.into is None:
            return path.exists() and _hash(path) == data["sha256"]
        files = [self.into / name for name in data["files"]]
        whole = all(map(Path.is_file, files))
        return whole and _hash_files(self.into, files) == data["sha256"]

    def _shard(self, number: int, data: dict[str, Any]) -> Shard:
        path = self.into or self._paths(number)[0]
        return Shard(number, path, data["sha256"], data["result"])

    def _numbers(self) -> list[int]:
        """Returns the numbers of the shards that are there, whole or not."""
        names = {path.name.removesuffix(".json") for path in self.folder.iterdir()}
        return sorted(int(name) for name in names if name.isdigit())

    def _discard(self, number: int) -> None:
        """Removes a shard, its record first."""
        path, record = self._paths(number)
        names = artifacts.read_json(record).get("files", ()) if record.is_file() else ()
        _remove(record)
        _remove(path)
        for name in names if self.into is not None else ():
            _remove(self.into / name)

    def _paths(self, number: int) -> tuple[Path, Path]:
        return self.folder / f"{number:05d}", self.folder / f"{number:05d}.json"


def clear(folder: str | Path) -> None:
    """Removes the shards of a finished folder, and temporary files of killed runs.

    A run may be killed in here, so a caller that finds the folder finished calls this as well.
    """
    _remove(Path(folder) / SHARDS)
    _remove_temporary(Path(folder))


def _take_place(temporary: Path, path: Path) -> None:
    """Renames to `path`; a worker of a killed run may just have put the same bytes there."""
    try:
        os.replace(temporary, path)
    except OSError:
        if not path.is_dir():
            raise


def _move_files(folder: Path, into: Path) -> list[str]:
    """Flushes the files of a folder and moves them; returns their names."""
    files = _files(folder)
    for file in files:
        _flush(file)
    for file in files:
        os.replace(file, into / file.name)
    return [file.name for file in files]


def _remove_temporary(folder: Path) -> None:
    for path in folder.glob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            _remove(path)


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _hash(path: Path) -> str:
    """Returns the SHA-256 of a file, or of a folder's file names and files."""
    return artifacts.sha256_file(path) if path.is_file() else _hash_files(path, _files(path))


def _hash_files(folder: Path, files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder)} {artifacts.sha256_file(file)}\n".encode())
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """Flushes a file to disk.

    Hundreds of small files in a folder wait for the one flush at the job's end: until then, the
    hash reveals a shard that a power cut damaged.
    """
    if path.is_file():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
