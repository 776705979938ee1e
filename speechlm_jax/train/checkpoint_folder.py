"""Which checkpoints of a run are there, what they say of themselves, and whether to trust them.

    checkpoints/00001500/params, variables, optimizer, extras   Orbax items
    checkpoints/00001500/meta.json                         step, rows seen, identity, config, timing
    checkpoints/00001500/checksums.json                    SHA-256 of every file; written last

A folder without checksums.json was not finished, or is being deleted: the file is written last and
deleted first. What is in the items, checkpoints.py knows.
"""

import dataclasses
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.errors import UserError

FOLDER = "checkpoints"
CHECKSUMS = "checksums.json"
META = "meta.json"

_log = logging.getLogger("speechlm.checkpoints")


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a checkpoint says of itself.

    Attributes:
      stage: name of the stage.
      step: finished updates.
      rows_seen: rows of all hosts that went into them; the data stream goes on from here.
      identity: fingerprints that the stage had (`Stage.identity`).
      config: the resolved config as JSON data.
      fingerprint: of what decides the result in that config.
      timing: wall_seconds and cpu_seconds of the run so far, over its restarts.
      described: what identities stand for (`Stage.described`); older checkpoints have none.
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
    """Which checkpoints stay when a newer one is finished; what one rule keeps, stays.

    Attributes:
      last: so many of the newest, at least 1.
      every_steps: those of multiples of this; 0: none.
      every_hours: one for each so many hours of the run; 0: none.
    """

    last: int = 2
    every_steps: int = 0
    every_hours: float = 0.0

    def prune(self, folder: Path) -> None:
        """Deletes the finished checkpoints that no rule keeps."""
        hours = 0.0  # of the last that the clock kept
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
    """Where the checkpoint of a step lies."""
    return folder / f"{step:08d}"


def steps(folder: Path) -> list[int]:
    """The steps whose checkpoints were finished, ascending; damage is not looked for."""
    if not folder.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in folder.iterdir()
        if re.fullmatch(r"[0-9]{8}|[1-9][0-9]{8,}", path.name) and (path / CHECKSUMS).is_file()
    )


def latest_good(workdir: str | Path) -> Path | None:
    """The newest checkpoint whose files all have their checksums; None where there is none.

    Damaged ones are skipped with a warning that names the file. All hosts get the same answer.
    """
    folder = (Path(workdir) / FOLDER).resolve()
    found = -1
    if jax.process_index() == 0:
        for step in reversed(steps(folder)):
            damage = _damage(step_folder(folder, step))
            if damage is None:
                found = step
                break
            _log.warning("%s: damaged, skipped (%s)", step_folder(folder, step), damage)
    if jax.process_count() > 1:
        found = int(multihost_utils.broadcast_one_to_all(np.int64(found)))
    return None if found < 0 else step_folder(folder, found)


def read_meta(folder: str | Path) -> Meta:
    """Reads what a checkpoint says of itself.

    Raises:
      UserError: the file is missing or of another version.
    """
    path = Path(folder) / META
    data = artifacts.read_json(path)
    try:
        return configs.from_json(Meta, data if isinstance(data, dict) else {})
    except UserError as error:
        raise UserError(
            f"{path}: is not of this version ({error}); take another checkpoint, or train again"
        ) from None


def newest_meta(path: str | Path) -> Meta:
    """What the newest good checkpoint of a run says of itself; `path` as in `find`."""
    return read_meta(find(path))


def training_folder(place: str | Path) -> Path:
    """The folder of a training, resolved, of that folder or of one of its checkpoints."""
    path = Path(place).resolve()
    return path.parents[1] if (path / CHECKSUMS).is_file() else path


def told_meta(path: str | Path) -> Meta:
    """As `newest_meta`, but damage is not looked for: it reads no weights."""
    path = Path(path)
    if (path / CHECKSUMS).is_file():
        return read_meta(path)
    found = steps(path / FOLDER)
    if not found:
        raise UserError(
            f"{path}: holds no whole checkpoint; give a run's folder or a step's folder"
        )
    return read_meta(step_folder(path / FOLDER, found[-1]))


def find(path: str | Path) -> Path:
    """The newest good checkpoint of a run's workdir, or the checkpoint of this very folder.

    Raises:
      UserError: there is none, or it is damaged.
    """
    path = Path(path).resolve()
    if (path / CHECKSUMS).is_file():
        damage = _damage(path)
        if damage is not None:
            raise UserError(f"{path}: this checkpoint is damaged ({damage}); take another one")
        return path
    found = latest_good(path.parent if path.name == FOLDER else path)
    if found is None:
        raise UserError(
            f"{path}: holds no whole checkpoint; give a run's folder or a step's folder"
        )
    return found


def seal(folder: Path, meta: Meta) -> None:
    """Writes what a checkpoint says of itself, then the checksums that make it a finished one."""
    artifacts.write_json(folder / META, dataclasses.asdict(meta))
    artifacts.write_json(folder / CHECKSUMS, _hash_files(folder))


def delete(folder: Path) -> None:
    """Deletes a checkpoint so that a kill at any moment leaves an unfinished one, or none."""
    (folder / CHECKSUMS).unlink(missing_ok=True)
    shutil.rmtree(folder)


def remove_unfinished(folder: Path) -> None:
    """Deletes what an interrupted save or deletion left behind."""
    for path in folder.iterdir():
        if path.is_dir() and not (path / CHECKSUMS).is_file() and not _is_damaged(path):
            _log.warning("%s: an interrupted save or deletion, removed", path)
            shutil.rmtree(path)


def set_aside(folder: Path, *, after: int) -> None:
    """Renames the checkpoints of later steps: they failed their checks, and must not count."""
    for step in [step for step in steps(folder) if step > after]:
        path = step_folder(folder, step)
        target = path.with_name(f"{path.name}.damaged")
        shutil.rmtree(target, ignore_errors=True)
        path.rename(target)


def _hours(folder: Path) -> float | None:
    """Hours that the run had taken; None where a checkpoint does not say (it is damaged)."""
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


def _damage(folder: Path) -> str | None:
    """Names the first file that is missing or changed; None when all is well."""
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
        except (OSError, ValueError) as error:  # of the disk, or of the name
            return f"{name} cannot be read: {error}"
    return None


def _is_damaged(path: Path) -> bool:
    return path.name.endswith(".damaged")
