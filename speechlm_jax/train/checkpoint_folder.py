"""The checkpoints folder of a run: lists, describes, verifies and deletes its checkpoints.

Imports no JAX.

    checkpoints/00001500/params, variables, optimizer, extras   Orbax items
    checkpoints/00001500/meta.json                         step, rows seen, identity, config, timing
    checkpoints/00001500/checksums.json                    SHA-256 of every file; written last

A folder without checksums.json is unfinished or is being deleted: the file is written last and
deleted first. checkpoints.py reads and writes the Orbax items.
"""

import dataclasses
import logging
import re
import shutil
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.errors import UserError

FOLDER = "checkpoints"
CHECKSUMS = "checksums.json"
META = "meta.json"

_log = logging.getLogger("speechlm.checkpoints")


@dataclasses.dataclass(frozen=True)
class Meta:
    """Metadata of a checkpoint.

    Attributes:
      stage: name of the stage.
      step: number of finished updates.
      rows_seen: rows of all hosts that went into those updates; the data stream resumes after them.
      identity: fingerprints of the stage, by name (`Stage.identity`).
      config: the resolved config as JSON data.
      fingerprint: fingerprint of the fields of that config that decide the result.
      timing: wall_seconds, cpu_seconds and the seconds of each part (`Goodput`) of the run so far,
        over its restarts.
      described: JSON data that the identities stand for, by name (`Stage.described`); older
        checkpoints have none.
    """

    stage: str
    step: int
    rows_seen: int
    identity: dict[str, str]
    config: Any
    fingerprint: str
    timing: dict[str, float]
    described: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Keep:
    """Rules for the checkpoints that stay when a newer one is finished; one rule suffices to stay.

    Attributes:
      last: number of newest checkpoints that stay, at least 1.
      every_steps: checkpoints at multiples of this many steps stay; 0: none.
      every_hours: one checkpoint for each period of this many hours of the run stays; 0: none.
    """

    last: int = 2
    every_steps: int = 0
    every_hours: float = 0.0

    def prune(self, folder: Path) -> None:
        """Deletes the finished checkpoints that no rule keeps."""
        hours = 0.0  # of the run, at the last checkpoint that every_hours kept
        for step in steps(folder)[: -max(1, self.last)]:
            path = step_folder(folder, step)
            if self.every_hours:
                now = _hours(path)
                if now is not None and now - hours >= self.every_hours:
                    hours = now
                    continue
            if not (self.every_steps and step % self.every_steps == 0):
                delete(path)


def step_folder(folder: Path, step: int) -> Path:
    """Returns the folder of a step's checkpoint."""
    return folder / f"{step:08d}"


def steps(folder: Path) -> list[int]:
    """Returns the steps of finished checkpoints, ascending; does not verify their files."""
    if not folder.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in folder.iterdir()
        if re.fullmatch(r"[0-9]{8}|[1-9][0-9]{8,}", path.name) and (path / CHECKSUMS).is_file()
    )


def newest_good(folder: Path) -> int | None:
    """Returns the step of the newest checkpoint whose files all match their checksums, or None.

    Skips damaged checkpoints with a warning that names the file.
    """
    for step in reversed(steps(folder)):
        found = damage(step_folder(folder, step))
        if found is None:
            return step
        _log.warning("%s: damaged, skipped (%s)", step_folder(folder, step), found)
    return None


def read_meta(folder: str | Path) -> Meta:
    """Reads the metadata of a checkpoint.

    Raises:
      UserError: the file is missing or was written by an incompatible version.
    """
    path = Path(folder) / META
    data = artifacts.read_json(path)
    try:
        return configs.from_json(Meta, data if isinstance(data, dict) else {})
    except UserError as error:
        raise UserError(
            f"{path}: is not of this version ({error}); take another checkpoint, or train again"
        ) from None


def training_folder(place: str | Path) -> Path:
    """Returns the resolved folder of a training; `place` as in `checkpoints.find`."""
    path = Path(place).resolve()
    if (path / CHECKSUMS).is_file():
        return path.parents[1]
    return path.parent if checkpoints_folder(path) == path else path


def told_meta(path: str | Path) -> Meta:
    """Returns the metadata of a run's newest finished checkpoint; `path` as in `checkpoints.find`.

    Verifies no checksums and so reads no weights.

    Raises:
      UserError: there is no checkpoint, or one of another version.
    """
    path = Path(path)
    if (path / CHECKSUMS).is_file():
        return read_meta(path)
    folder = checkpoints_folder(path)
    found = steps(folder)
    if not found:
        raise no_checkpoint(path)
    return read_meta(step_folder(folder, found[-1]))


def checkpoints_folder(path: Path) -> Path:
    """Returns the checkpoints folder of a run, given the run's workdir or that folder itself."""
    is_it = path.resolve().name == FOLDER and not (path / FOLDER).is_dir()
    return path if is_it else path / FOLDER


def no_checkpoint(path: Path) -> UserError:
    """Returns the error of a folder that is no run with a checkpoint, and no checkpoint."""
    return UserError(f"{path}: holds no whole checkpoint; give a run's folder or a step's folder")


def seal(folder: Path, meta: Meta) -> None:
    """Writes a checkpoint's metadata, then the checksums that mark it as finished."""
    artifacts.write_json(folder / META, dataclasses.asdict(meta))
    artifacts.write_json(folder / CHECKSUMS, _hash_files(folder))


def delete(folder: Path) -> None:
    """Deletes a checkpoint, its checksums first: a kill then leaves an unfinished one, or none."""
    (folder / CHECKSUMS).unlink(missing_ok=True)
    shutil.rmtree(folder)


def remove_unfinished(folder: Path) -> None:
    """Deletes what an interrupted save or deletion left behind."""
    for path in folder.iterdir():
        if path.is_dir() and not (path / CHECKSUMS).is_file() and not _is_damaged(path):
            _log.warning("%s: an interrupted save or deletion, removed", path)
            shutil.rmtree(path)


def set_aside(folder: Path, *, after: int) -> None:
    """Renames checkpoints of later steps to `*.damaged`: they failed verification."""
    for step in [step for step in steps(folder) if step > after]:
        path = step_folder(folder, step)
        target = path.with_name(f"{path.name}.damaged")
        shutil.rmtree(target, ignore_errors=True)
        path.rename(target)


def _hours(folder: Path) -> float | None:
    """Returns the run's hours at a checkpoint, or None if its metadata is damaged."""
    try:
        seconds = read_meta(folder).timing.get("wall_seconds", 0.0)
    except UserError:
        return None
    return seconds / 3600


def _hash_files(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): artifacts.sha256_file(path)
        for path in files
        if path.name != CHECKSUMS
    }


def damage(folder: Path) -> str | None:
    """Describes the first file that is missing, changed or unreadable; None if there is none."""
    try:
        digests = artifacts.read_json(folder / CHECKSUMS)
    except UserError:
        return f"{CHECKSUMS} cannot be read"
    if not isinstance(digests, dict) or META not in digests:
        return f"{CHECKSUMS} names no files"
    for name, digest in digests.items():
        try:
            if artifacts.sha256_file(folder / name) != digest:
                return f"{name} has changed"
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, ValueError) as error:  # from the disk, or from an invalid name
            return f"{name} cannot be read: {error}"
    return None


def _is_damaged(path: Path) -> bool:
    return path.name.endswith(".damaged")
