"""Weights of a Hugging Face folder <-> a tree of ours, read directly to a mesh; knows no model.

Each device's part of each array is read from memory-mapped files when it is needed; no host holds
more than its own shards and one tensor.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Sharding, SingleDeviceSharding

from speechlm_jax.arrays import Int, PyTree, Shaped, ndarray
from speechlm_jax.convert.extension import Extended
from speechlm_jax.convert.families import LAYER, Tensor
from speechlm_jax.convert.folder_files import listed
from speechlm_jax.convert.safetensors_folder import Folder, Planned
from speechlm_jax.errors import UserError

# A folder with parameters, with its own or an extended vocabulary.
Source: TypeAlias = Folder | Extended


@dataclasses.dataclass(frozen=True)
class Place:
    """Place of a parameter: rows of one foreign tensor, or of one foreign tensor in each layer."""

    tensor: Tensor
    first: int
    rows: int
    order: Int[ndarray, " rows"] | None  # foreign rows in our order

    def read(self, source: Source, index: tuple[slice, ...]) -> Shaped[ndarray, "..."]:
        """Reads the part of the parameter that `index` (bounded slices) selects."""
        if LAYER not in self.tensor.name:
            return self._one(source, self.tensor.name, index)
        names = map(self.tensor.name_of, range(index[0].start, index[0].stop))
        return np.stack([self._one(source, name, index[1:]) for name in names])

    def _one(self, source: Source, name: str, index: tuple[slice, ...]) -> ndarray:
        rows, *columns = index[::-1] if self.tensor.transposed else index
        if self.order is None:
            mine = slice(self.first + rows.start, self.first + rows.stop)
            found = source.read(name, mine, *columns)
        else:
            whole = source.read(name, slice(self.first, self.first + self.rows), *columns)
            found = whole[self.order[rows]]
        return found.T if self.tensor.transposed else found


def read_tensors(
    source: Source,
    tensors: Sequence[Tensor],
    shapes: PyTree,
    *,
    where: str,
    shardings: PyTree | None = None,
    dtype: Any = jnp.float32,
) -> PyTree:
    """Reads a tree of parameters (and variables), laid out by `shardings`.

    Args:
      shapes: shape of each; every one is part of a tensor.
      where: what errors name.
      shardings: of each; None: all on the first device.

    Raises:
      UserError: tensors are missing, unexpected or of another shape; the message lists them.
    """
    check_tensors(source.shapes, tensors, shapes, where)
    places = _places(tensors, shapes)
    flat, tree = jax.tree_util.tree_flatten_with_path(shapes)
    one = SingleDeviceSharding(jax.local_devices()[0])
    laid = [one] * len(flat) if shardings is None else tree.flatten_up_to(shardings)

    def made(path: str, shape: tuple[int, ...], sharding: Sharding) -> jax.Array:
        def part(index: Any) -> ndarray:
            bounded = tuple(slice(*i.indices(n)[:2]) for i, n in zip(index, shape, strict=True))
            return np.ascontiguousarray(places[path].read(source, bounded)).astype(dtype)

        return jax.make_array_from_callback(shape, sharding, part)

    leaves = [
        made(_joined(path), leaf.shape, sharding)
        for (path, leaf), sharding in zip(flat, laid, strict=True)
    ]
    return jax.tree.unflatten(tree, leaves)


def plan_tensors(tensors: Sequence[Tensor], shapes: PyTree, tree: PyTree) -> list[Planned]:
    """Returns the foreign tensors that a tree is written as; each is made when it is written."""
    leaves = flatten_dict(tree, sep="/")
    orders = {path: place.order for path, place in _places(tensors, shapes).items()}

    def maker(tensor: Tensor, layer: int | None) -> Callable[[], ndarray]:
        def make() -> ndarray:
            parts = []
            for ours in tensor.ours:
                part = _host(leaves[ours] if layer is None else leaves[ours][layer])
                part = part.T if tensor.transposed else part
                order = orders[ours]
                parts.append(part if order is None else part[np.argsort(order)])
            return np.concatenate(parts)

        return make

    return [
        Planned(name, shape, maker(tensor, layer))
        for tensor, layer, name, shape in _foreign(tensors, shapes)
        if tensor.ours
    ]


def check_tensors(
    found: Mapping[str, tuple[int, ...]],
    tensors: Sequence[Tensor],
    shapes: PyTree,
    where: str,
) -> None:
    """Raises UserError, which lists them, if tensors are missing, unexpected or misshapen."""
    every = list(_foreign(tensors, shapes))
    wanted = {name: shape for tensor, _, name, shape in every if tensor.ours}
    optional = {name for tensor, _, name, _ in every if tensor.absent}
    problems = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": sorted(found.keys() - wanted.keys() - optional),
        "of another shape": [
            f"{name} {list(found[name])} instead of {list(shape)}"
            for name, shape in wanted.items()
            if name in found and found[name] != shape
        ],
    }
    said = [f"{len(names)} {what}: {listed(names)}" for what, names in problems.items() if names]
    if said:
        raise UserError(f"{where}: tensors do not fit config.json: " + "; ".join(said))


def digest(folder: Folder, tensors: Sequence[Tensor], shapes: PyTree) -> str:
    """Returns 16 hex digits that identify a model's weights: a hash of its tensors, as stored.

    How they are divided into files does not count, nor does what the model does not read.
    """
    made = hashlib.sha256()
    for tensor, _, name, shape in _foreign(tensors, shapes):
        if tensor.ours:
            made.update(f"{name} {list(shape)}\n".encode())
            for part in folder.chunks(name):
                made.update(str(part.dtype).encode() + np.ascontiguousarray(part).tobytes())
    return made.hexdigest()[:16]


def _host(array: Any) -> ndarray:
    if getattr(array, "is_fully_addressable", True):
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def _joined(path: tuple[Any, ...]) -> str:
    return "/".join(key.key for key in path)


def _shape_of(shapes: PyTree, path: str) -> tuple[int, ...]:
    for name in path.split("/"):
        shapes = shapes[name]
    return shapes.shape


def _places(tensors: Sequence[Tensor], shapes: PyTree) -> dict[str, Place]:
    places = {}
    for tensor in tensors:
        first = 0
        for ours in tensor.ours:
            shape = _shape_of(shapes, ours)[1 if LAYER in tensor.name else 0 :]
            rows = shape[-1] if tensor.transposed else shape[0]
            turned = _halves(tensor, rows) if ours in tensor.neighbours else None
            places[ours] = Place(tensor, first, rows, turned)
            first += rows
    return places


def _halves(tensor: Tensor, rows: int) -> Int[ndarray, " rows"]:
    """Returns foreign rows, of which neighbours rotate, in our order, in which halves rotate."""
    head = np.arange(tensor.head_dim)
    turning = tensor.turning
    head[:turning] = np.concatenate([head[0:turning:2], head[1:turning:2]])
    return (np.arange(0, rows, tensor.head_dim)[:, None] + head).reshape(-1)


def _foreign(
    tensors: Sequence[Tensor], shapes: PyTree
) -> Iterator[tuple[Tensor, int | None, str, tuple[int, ...]]]:
    """Yields each foreign tensor of a model, as (its `Tensor`, our layer, name, shape)."""
    stacked = [t for t in tensors if LAYER in t.name and t.ours]
    counts = {t: _shape_of(shapes, t.ours[0])[0] for t in stacked}
    total = max((t.first_layer + count for t, count in counts.items()), default=0)
    for number in (None, *range(total)):
        for tensor in tensors:
            if (LAYER in tensor.name) != (number is not None):
                continue
            layer = None if number is None else number - tensor.first_layer
            if layer is not None and not 0 <= layer < counts.get(tensor, total):
                continue
            parts = [_shape_of(shapes, ours)[0 if layer is None else 1 :] for ours in tensor.ours]
            parts = [part[::-1] if tensor.transposed else part for part in parts]
            rows = sum(part[0] for part in parts)
            yield tensor, layer, tensor.name_of(layer), (rows, *parts[0][1:]) if parts else ()
