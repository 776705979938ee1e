"""Checkpoints: written by Orbax in the background, trusted only after our own checksums agree.

    checkpoints/00001500/params, variables, optimizer, extras   Orbax items
    checkpoints/00001500/meta.json                         step, rows seen, identity, config, timing
    checkpoints/00001500/checksums.json                    SHA-256 of every file; written last

A folder without checksums.json was not finished. Nothing else in the project knows of Orbax.
"""

import dataclasses
import logging
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from jax.experimental import multihost_utils

from speechlm_jax import artifacts
from speechlm_jax.arrays import PyTree
from speechlm_jax.errors import UserError
from speechlm_jax.train.state import TrainState
from speechlm_jax.train.trainable import select

FOLDER = "checkpoints"
CHECKSUMS = "checksums.json"
META = "meta.json"
ITEMS = ("params", "variables", "optimizer", "extras")
ADAPTERS = "lora_"  # parameters that weights of another run may lack

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
    """

    stage: str
    step: int
    rows_seen: int
    identity: dict[str, str]
    config: Any
    fingerprint: str
    timing: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Weights:
    """What an evaluation or another run takes from a checkpoint."""

    params: PyTree
    variables: PyTree
    meta: Meta


class CheckpointWriter:
    """The checkpoints of one run; the only thing that writes or deletes there.

    A save returns once the arrays are copied; files, checksums and the deletion of old checkpoints
    follow in a background thread. An error there is raised by the next `save`, `check` or `close`.
    """

    def __init__(self, workdir: str | Path, *, keep_last: int = 2, keep_every_steps: int = 0):
        """Removes what an interrupted save left behind.

        Args:
          keep_last: how many of the newest checkpoints stay, at least 1.
          keep_every_steps: checkpoints of multiples of this stay for ever; 0 for none.
        """
        self.folder = (Path(workdir) / FOLDER).resolve()
        self._keep_last = max(1, keep_last)
        self._keep_every_steps = keep_every_steps
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        if jax.process_index() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.iterdir():
                if path.is_dir() and not (path / CHECKSUMS).is_file() and not _is_damaged(path):
                    _log.warning("%s: an interrupted save, removed", path)
                    shutil.rmtree(path)
        _barrier("checkpoints_ready")

    def save(self, state: TrainState, meta: Meta) -> None:
        """Starts to save a state; waits first for the save before it."""
        self.wait()
        folder = step_folder(self.folder, meta.step)
        if jax.process_index() == 0 and folder.exists():
            shutil.rmtree(folder)
        _barrier("checkpoint_folder_free")
        trees = (state.params, state.variables, state.opt_state, state.extras)
        items = {name: _to_saved(tree) for name, tree in zip(ITEMS, trees, strict=True)}
        # Orbax refuses an item without arrays
        response = ocp.save_checkpointables_async(
            str(folder), {k: v for k, v in items.items() if v}
        )
        self._pending = self._thread.submit(self._finish, response, folder, meta)

    def check(self) -> None:
        """Raises the error of a background save that has failed; waits for nothing."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is on disk and has its checksums."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def finish(self) -> None:
        """Waits until the last save is on disk, on all hosts: none leaves while others write."""
        self.wait()
        _barrier("checkpoints_finished")

    def close(self) -> None:
        """Waits for the last save and ends the background thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def set_aside_after(self, step: int) -> None:
        """Renames the checkpoints of later steps: they failed their checks, and must not count."""
        if jax.process_index() == 0:
            for later in [s for s in steps(self.folder) if s > step]:
                folder = step_folder(self.folder, later)
                target = folder.with_name(f"{folder.name}.damaged")
                shutil.rmtree(target, ignore_errors=True)
                folder.rename(target)
        _barrier("checkpoints_set_aside")

    def _finish(self, response: Any, folder: Path, meta: Meta) -> None:
        response.result()
        if jax.process_index() == 0:
            artifacts.write_json(folder / META, dataclasses.asdict(meta))
            artifacts.write_json(folder / CHECKSUMS, _hash_files(folder))
            self._prune()

    def _prune(self) -> None:
        every = self._keep_every_steps
        for step in steps(self.folder)[: -self._keep_last]:
            if not (every and step % every == 0):
                shutil.rmtree(step_folder(self.folder, step))


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
        if re.fullmatch(r"\d{8,}", path.name) and (path / CHECKSUMS).is_file()
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
        return Meta(**data)
    except TypeError:
        raise UserError(f"{path}: was written by another version; train again") from None


def restore(folder: Path, abstract: TrainState) -> TrainState:
    """Reads a whole state onto the mesh of `abstract`, whatever mesh it was saved from.

    Raises:
      UserError: the checkpoint is of another model: the first parameter that differs is named.
    """
    wanted = (abstract.params, abstract.variables, abstract.opt_state, abstract.extras)
    loaded = _load(folder, _saved_shapes(folder), dict(zip(ITEMS, wanted, strict=True)))
    step = jax.device_put(np.int32(read_meta(folder).step), abstract.step.sharding)
    return TrainState(step, *(loaded[name] for name in ITEMS))


def restore_weights(path: str | Path, abstract: TrainState) -> Weights:
    """Reads another run's weights onto the mesh of `abstract`; `path` as in `load_params`.

    Adapters (LoRA) that the other run did not have are left out of what is returned.
    """
    folder = _find(path)
    params, saved = abstract.params, _saved_shapes(folder)
    if not any(name.startswith(ADAPTERS) for name in _leaf_names(saved["params"])):
        params = select(params, lambda path: not path.split("/")[-1].startswith(ADAPTERS))
    loaded = _load(folder, saved, {"params": params, "variables": abstract.variables})
    return Weights(loaded["params"], loaded["variables"], read_meta(folder))


def newest_meta(path: str | Path) -> Meta:
    """What the newest good checkpoint of a run says of itself; `path` as in `load_params`."""
    return read_meta(_find(path))


def load_params(path: str | Path) -> Weights:
    """Reads parameters (their average, if kept) and variables onto this process's first device.

    Args:
      path: a run's workdir (its newest good checkpoint is taken) or one checkpoint's folder.

    Raises:
      UserError: there is no checkpoint, or it is damaged.
    """
    folder = _find(path)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    saved = _saved_shapes(folder)
    averaged = "ema" in saved.get("extras", {})
    trees = {
        name: jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), saved[name]
        )
        for name in ("extras" if averaged else "params", "variables")
        if name in saved
    }
    loaded = ocp.load_checkpointables(str(folder), trees)
    params = loaded["extras"]["ema"] if averaged else loaded["params"]
    return Weights(
        params=_from_saved(params),
        variables=_from_saved(loaded.get("variables", {})),
        meta=read_meta(folder),
    )


def _find(path: str | Path) -> Path:
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
        if not (folder / name).is_file():
            return f"{name} is missing"
        if artifacts.sha256_file(folder / name) != digest:
            return f"{name} has changed"
    return None


def _is_damaged(path: Path) -> bool:
    return path.name.endswith(".damaged")


def _load(folder: Path, saved: dict[str, PyTree], wanted: dict[str, PyTree]) -> dict[str, PyTree]:
    """Reads items (of these `saved` shapes) into the trees of `wanted` (with shardings)."""
    items = {name: _to_saved(tree) for name, tree in wanted.items()}
    for name, tree in items.items():
        _check_same(folder, name, saved.get(name, {}), tree)
    loaded = ocp.load_checkpointables(
        str(folder), {name: tree for name, tree in items.items() if tree}
    )
    return {
        name: jax.tree.unflatten(jax.tree.structure(tree), _leaves_like(tree, loaded.get(name, {})))
        for name, tree in wanted.items()
    }


def _saved_shapes(folder: Path) -> dict[str, PyTree]:
    return {
        k: v for k, v in ocp.checkpointables_metadata(str(folder)).metadata.items() if k in ITEMS
    }


def _check_same(folder: Path, item: str, saved: PyTree, wanted: PyTree) -> None:
    """Raises where names or shapes differ; Orbax would fill or cut arrays in silence."""
    ours, theirs = (
        {
            jax.tree_util.keystr(path, simple=True, separator="."): (tuple(leaf.shape), leaf.dtype)
            for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        }
        for tree in (wanted, saved)
    )
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            here, there = (_say(tree.get(name)) for tree in (ours, theirs))
            raise UserError(
                f"{folder}: is of another model: {item} '{name}' is {there} there and {here} here"
            )


def _say(array: tuple[tuple[int, ...], Any] | None) -> str:
    return "absent" if array is None else f"{np.dtype(array[1]).name}{list(array[0])}"


def _to_saved(tree: PyTree) -> dict[str, Any]:
    """Any tree as nested dicts with string keys: files then depend on no Python class."""
    nested: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        *parents, last = _names(path)
        node = nested
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = leaf
    return nested


def _leaves_like(tree: PyTree, saved: dict[str, Any]) -> list[Any]:
    leaves = []
    for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]:
        node: Any = saved
        for name in _names(path):
            node = node[name]
        leaves.append(node)
    return leaves


def _leaf_names(tree: PyTree) -> list[str]:
    return [_names(path)[-1] for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _names(path: Any) -> list[str]:
    return [jax.tree_util.keystr((entry,), simple=True) for entry in path] or ["value"]


def _from_saved(tree: Any) -> Any:
    """Nested dicts of parameters; flax counts the modules of a list with ints."""
    if not isinstance(tree, dict):
        return tree
    return {int(k) if k.isdigit() else k: _from_saved(v) for k, v in tree.items()}


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
