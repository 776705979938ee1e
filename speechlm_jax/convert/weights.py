"""Weights of a Hugging Face folder <-> parameters of our language model, read directly to a mesh.

Each device's part of each parameter is read from memory-mapped files when it is needed; no host
holds more than its own shards and one tensor.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding, SingleDeviceSharding

from speechlm_jax.arrays import Int, PyTree, Shaped, ndarray
from speechlm_jax.convert.extension import Extended
from speechlm_jax.convert.families import EMBEDDING, HEAD, LAYER, Family, Tensor, family_of
from speechlm_jax.convert.folder_files import listed
from speechlm_jax.convert.model_config import config_from_json, config_to_json
from speechlm_jax.convert.safetensors_folder import (
    CONFIG,
    SHARD_BYTES,
    Folder,
    Planned,
    write_folder,
)
from speechlm_jax.errors import UserError
from speechlm_jax.nn.adapters import merge_adapters
from speechlm_jax.nn.language_model import LanguageModelConfig, functional

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
        layers = range(index[0].start, index[0].stop)
        names = (self.tensor.name.replace(LAYER, str(layer)) for layer in layers)
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


def read_config(folder: Folder) -> tuple[Family, LanguageModelConfig]:
    """Returns the family and our config of the model in a folder.

    Raises:
      UserError: config.json is of no model that we have, or tensors do not fit it; the message
        lists them.
    """
    where = str(folder.path / CONFIG)
    family, config = config_from_json(folder.config, where)
    if config.transformer.num_layers > len(folder.shapes):
        raise UserError(
            f"{where}: says {config.transformer.num_layers} layers; the folder has "
            f"{len(folder.shapes)} tensors in all"
        )
    shapes = functional(config).shapes
    _check(folder.shapes, family.tensors(config), config, shapes, str(folder.path))
    if config.tied:
        _check_tied(folder, where)
    return family, config


def read_params(
    source: Source,
    family: Family,
    config: LanguageModelConfig,
    *,
    where: str,
    shardings: PyTree | None = None,
    dtype: Any = jnp.float32,
) -> PyTree:
    """Reads the parameters of a model, laid out by `shardings` (default: on the first device).

    Raises:
      UserError: tensors are missing, unexpected or of another shape; the message lists them.
    """
    shapes = functional(config).shapes
    places = _places(family, config, shapes)
    _check(source.shapes, family.tensors(config), config, shapes, where)
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


def write_params(
    path: str | Path,
    config: LanguageModelConfig,
    params: PyTree,
    *,
    length: int,
    dtype: str = "bfloat16",
    shard_bytes: int = SHARD_BYTES,
    extra: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """Writes a model as a folder that `transformers` opens; yields each file's name.

    Adapters are merged into the weights.

    Args:
      length: longest context that the model is trained for, in ids.
      extra: further fields of config.json, such as `eos_token_id`.
    """
    config, params = _unscaled(*merge_adapters(config, params))
    family = family_of(config)
    shapes = functional(config).shapes
    leaves = {_joined(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(params)}
    orders = {path: place.order for path, place in _places(family, config, shapes).items()}

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

    planned = [
        Planned(name, shape, maker(tensor, layer))
        for tensor, layer, name, shape in _foreign(family.tensors(config), config, shapes)
        if tensor.ours
    ]
    described = {**config_to_json(config, dtype=dtype, length=length), **(extra or {})}
    yield from write_folder(path, planned, described, dtype=dtype, shard_bytes=shard_bytes)


def _unscaled(config: LanguageModelConfig, params: PyTree) -> tuple[LanguageModelConfig, PyTree]:
    """Returns the same model without scaled embeddings, which no family supports."""
    if not config.scale_embeddings:
        return config, params
    table = params["embedding"]
    head = {"kernel": table.T} if config.tied else params["head"]
    scaled = {**params, "embedding": table * config.transformer.embed**0.5, "head": head}
    return dataclasses.replace(config, tied=False, scale_embeddings=False), scaled


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


def _places(family: Family, config: LanguageModelConfig, shapes: PyTree) -> dict[str, Place]:
    places = {}
    for tensor in family.tensors(config):
        first = 0
        for ours in tensor.ours:
            shape = _shape_of(shapes, ours)
            rows = shape[-1] if tensor.transposed or LAYER in tensor.name else shape[0]
            turned = _halves(config, rows) if ours in tensor.neighbours else None
            places[ours] = Place(tensor, first, rows, turned)
            first += rows
    return places


def _halves(config: LanguageModelConfig, rows: int) -> Int[ndarray, " rows"]:
    """Returns foreign rows, of which neighbours rotate, in our order, in which halves rotate."""
    size = config.transformer.head_dim
    turning = int(size * config.transformer.rope_fraction)
    head = np.arange(size)
    head[:turning] = np.concatenate([head[0:turning:2], head[1:turning:2]])
    return (np.arange(0, rows, size)[:, None] + head).reshape(-1)


def _foreign(
    tensors: tuple[Tensor, ...], config: LanguageModelConfig, shapes: PyTree
) -> Iterator[tuple[Tensor, int | None, str, tuple[int, ...]]]:
    """Yields each foreign tensor of a model, as (its `Tensor`, layer, name, shape)."""
    for layer in (None, *range(config.transformer.num_layers)):
        for tensor in tensors:
            if (LAYER in tensor.name) != (layer is not None):
                continue
            parts = [_shape_of(shapes, ours)[0 if layer is None else 1 :] for ours in tensor.ours]
            parts = [part[::-1] if tensor.transposed else part for part in parts]
            rows = sum(part[0] for part in parts)
            name = tensor.name.replace(LAYER, str(layer))
            yield tensor, layer, name, (rows, *parts[0][1:]) if parts else ()


def _check_tied(folder: Folder, where: str) -> None:
    """Raises UserError if the folder has an output layer that differs from the embedding."""
    if HEAD not in folder.shapes:
        return
    both = zip(folder.chunks(EMBEDDING), folder.chunks(HEAD), strict=False)
    same = folder.shapes[HEAD] == folder.shapes[EMBEDDING]
    if not same or not all(np.array_equal(one, other) for one, other in both):
        raise UserError(
            f"{where}: tie_word_embeddings is true, but {HEAD} is not {EMBEDDING}; set it to false"
        )


def _check(
    found: Mapping[str, tuple[int, ...]],
    tensors: tuple[Tensor, ...],
    config: LanguageModelConfig,
    shapes: PyTree,
    where: str,
) -> None:
    every = list(_foreign(tensors, config, shapes))
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
