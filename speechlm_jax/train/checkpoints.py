"""Checkpoints: written by Orbax in the background, sealed by our own checksums, read onto any mesh.

checkpoint_folder.py describes their layout. No other file of the project uses Orbax.
"""

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from jax.experimental import multihost_utils

from speechlm_jax.arrays import PyTree
from speechlm_jax.errors import UserError
from speechlm_jax.train.checkpoint_folder import (
    CHECKSUMS,
    FOLDER,
    Keep,
    Meta,
    checkpoints_folder,
    damage,
    delete,
    newest_good,
    no_checkpoint,
    read_meta,
    remove_unfinished,
    seal,
    set_aside,
    step_folder,
    steps,
)
from speechlm_jax.train.state import TrainState
from speechlm_jax.train.trainable import select

ITEMS = ("params", "variables", "optimizer", "extras")
ADAPTERS = "lora_"  # prefix of parameters that another run's weights may lack
KEEP = Keep()


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights of a checkpoint for an evaluation or another run."""

    params: PyTree
    variables: PyTree
    meta: Meta


class CheckpointWriter:
    """Writer of one run's checkpoints; nothing else writes or deletes there.

    `save` returns once the arrays are copied; a background thread then writes files and checksums
    and deletes old checkpoints. The next `save`, `check` or `close` raises an error of that thread.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        keep: Keep = KEEP,
        confirm: Callable[[], None] = lambda: None,
    ):
        """Removes what an interrupted save left behind.

        Args:
          confirm: called before each save and again before its checksums are written; raises if
            this process must not write.
        """
        self.folder = (Path(workdir) / FOLDER).resolve()
        self._keep, self._confirm = keep, confirm
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        if jax.process_index() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_unfinished(self.folder)
        _barrier("checkpoints_ready")

    def save(self, state: TrainState, meta: Meta) -> None:
        """Starts to save a state, after waiting for the previous save."""
        self.wait()
        self._confirm()  # before the barrier: if one host must not write, none does
        folder = step_folder(self.folder, meta.step)
        if jax.process_index() == 0 and folder.exists():
            delete(folder)
        _barrier("checkpoint_folder_free")
        trees = (state.params, state.variables, state.opt_state, state.extras)
        items = {name: _to_saved(tree) for name, tree in zip(ITEMS, trees, strict=True)}
        # Orbax refuses an item without arrays
        response = ocp.save_checkpointables_async(
            str(folder), {k: v for k, v in items.items() if v}
        )
        self._pending = self._thread.submit(self._finish, response, folder, meta)

    def check(self) -> None:
        """Raises the error of a background save that has failed; does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is on disk and has its checksums."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            try:
                pending.result()
            except (OSError, ValueError) as error:  # TensorStore's file errors are ValueErrors
                if isinstance(error, OSError) or "os_error_code" in str(error):
                    raise UserError(self._unsaved(error)) from None
                raise

    def _unsaved(self, error: Exception) -> str:
        good = steps(self.folder)
        goes_on = f"goes on from step {good[-1]}" if good else "starts anew"
        return (
            f"{self.folder}: a checkpoint could not be written ({str(error).splitlines()[0]}); "
            f"make room, then the same command {goes_on}"
        )

    def finish(self) -> None:
        """Waits until the last save is on disk on all hosts: none leaves while others write."""
        self.wait()
        _barrier("checkpoints_finished")

    def close(self) -> None:
        """Waits for the last save and ends the background thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def set_aside_after(self, step: int) -> None:
        """Renames checkpoints of later steps to `*.damaged`: they failed verification."""
        if jax.process_index() == 0:
            set_aside(self.folder, after=step)
        _barrier("checkpoints_set_aside")

    def _finish(self, response: Any, folder: Path, meta: Meta) -> None:
        response.result()
        if jax.process_index() == 0:
            self._confirm()  # again: writing may have taken long
            seal(folder, meta)
            self._keep.prune(self.folder)


def latest_good(workdir: str | Path) -> Path | None:
    """Returns the newest checkpoint of a run whose files all match their checksums, or None.

    All hosts get the same answer.
    """
    return _latest_good((Path(workdir) / FOLDER).resolve())


def find(path: str | Path) -> Path:
    """Returns the newest undamaged checkpoint of a run, or `path` if it is a checkpoint itself.

    `path` is a run's workdir, its checkpoints folder or the folder of one checkpoint.

    Raises:
      UserError: there is none, or the given checkpoint is damaged.
    """
    path = Path(path).resolve()
    if (path / CHECKSUMS).is_file():
        found = damage(path)
        if found is not None:
            raise UserError(f"{path}: this checkpoint is damaged ({found}); take another one")
        return path
    good = _latest_good(checkpoints_folder(path))
    if good is None:
        raise no_checkpoint(path)
    return good


def _latest_good(folder: Path) -> Path | None:
    step = newest_good(folder) if jax.process_index() == 0 else None
    found = -1 if step is None else step
    if jax.process_count() > 1:
        found = int(multihost_utils.broadcast_one_to_all(np.int64(found)))
    return None if found < 0 else step_folder(folder, found)


def newest_meta(path: str | Path) -> Meta:
    """Returns the metadata of a run's newest undamaged checkpoint; `path` as in `find`."""
    return read_meta(find(path))


def restore(folder: Path, abstract: TrainState) -> TrainState:
    """Reads a whole state onto the mesh of `abstract`, whatever mesh it was saved from.

    Raises:
      UserError: the checkpoint is of another model; the message names the first parameter that
        differs.
    """
    wanted = (abstract.params, abstract.variables, abstract.opt_state, abstract.extras)
    loaded = _load(folder, _saved_shapes(folder), dict(zip(ITEMS, wanted, strict=True)))
    step = jax.device_put(np.int32(read_meta(folder).step), abstract.step.sharding)
    return TrainState(step, *(loaded[name] for name in ITEMS))


def restore_weights(path: str | Path, abstract: TrainState) -> Weights:
    """Reads another run's weights onto the mesh of `abstract`; `path` as in `find`.

    Adapters (LoRA) that the other run did not have are absent from the result.
    """
    folder = find(path)
    params, saved = abstract.params, _saved_shapes(folder)
    if not any(name.startswith(ADAPTERS) for name in _leaf_names(saved["params"])):
        params = select(params, lambda path: not path.split("/")[-1].startswith(ADAPTERS))
    loaded = _load(folder, saved, {"params": params, "variables": abstract.variables})
    return Weights(loaded["params"], loaded["variables"], read_meta(folder))


def load_params(path: str | Path, *, layout: Callable[[Meta], PyTree] | None = None) -> Weights:
    """Reads parameters (their average, if kept) and variables onto this process's first device.

    Args:
      path: a run's workdir (its newest undamaged checkpoint is read) or one checkpoint's folder.
      layout: returns the parameters' shapes with their shardings, from the checkpoint's metadata.
        Each device then reads its own part of them.

    Raises:
      UserError: there is no checkpoint, it is damaged, or it has other parameters than `layout`.
    """
    folder = find(path)
    meta, saved = read_meta(folder), _saved_shapes(folder)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    item = "extras" if "ema" in saved.get("extras", {}) else "params"
    trees = {
        name: jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), saved[name]
        )
        for name in (item, "variables")
        if name in saved
    }
    if layout is not None:
        wanted = _to_saved(layout(meta))
        if item == "extras":
            wanted = {**trees[item], "ema": wanted}
        _check_same(folder, item, saved[item], wanted)
        trees[item] = wanted
    loaded = ocp.load_checkpointables(str(folder), trees)
    params = loaded["extras"]["ema"] if item == "extras" else loaded["params"]
    return Weights(_from_saved(params), _from_saved(loaded.get("variables", {})), meta)


def _load(folder: Path, saved: dict[str, PyTree], wanted: dict[str, PyTree]) -> dict[str, PyTree]:
    """Reads items, saved in the shapes `saved`, into the trees and shardings of `wanted`."""
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
    """Raises UserError if names, shapes or dtypes differ; Orbax silently fills or cuts arrays."""
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
    """Returns any tree as nested dicts with string keys; files then depend on no Python class."""
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
    """Returns nested dicts with digits as int keys, by which flax counts the modules of a list."""
    if not isinstance(tree, dict):
        return tree
    return {int(k) if k.isdigit() else k: _from_saved(v) for k, v in tree.items()}


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
