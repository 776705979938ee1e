"""A Hugging Face folder of safetensors files: reads any part of a tensor, and writes folders."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Shaped
from numpy import ndarray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from speechlm_jax import artifacts
from speechlm_jax.convert.folder_files import has, inside, listed, read_object, shown
from speechlm_jax.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
READ = ("F64", "F32", "F16", "BF16")  # accepted dtypes of weights; none is quantised
CHUNK = 4096  # rows of a matrix read at a time
SHARD_BYTES = 5 * 10**9  # as in `transformers`


@dataclasses.dataclass(frozen=True)
class Folder:
    """Tensors by name, read part by part from memory-mapped files."""

    path: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """Data of config.json; raises UserError if there is none."""
        if not has(self.path, CONFIG):
            raise UserError(f"{self.path}: has no {CONFIG}; give a Hugging Face model folder")
        return read_object(self.path, CONFIG)

    @cached_property
    def file_of(self) -> dict[str, str]:
        """File of each tensor; a single file takes precedence over an index, as in `transformers`.

        Raises:
          UserError: there are no safetensors files, the index is broken, or it lists a file that is
            missing or outside of the folder.
        """
        if has(self.path, SINGLE):
            found = dict.fromkeys(self._open(SINGLE).keys(), SINGLE)
        elif has(self.path, INDEX):
            found = self._read_index()
        else:
            raise UserError(f"{self.path}: has neither {SINGLE} nor {INDEX}")
        for name in found:
            if not name.isprintable():
                raise UserError(f"{self.path}: {shown(name)}: is no name of a tensor")
        return found

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor; raises UserError if the dtype of one is not in `READ`."""
        found = {}
        for name in self.file_of:
            part = self._slice(name)
            if part.get_dtype() not in READ:
                raise UserError(
                    f"{self.path}: {name} is stored as {part.get_dtype()}; give weights in one of "
                    f"{', '.join(READ)}"
                )
            found[name] = tuple(part.get_shape())
        return found

    def read(self, name: str, *where: slice) -> Shaped[ndarray, "..."]:
        """Reads a part of a tensor; axes beyond `where` are read whole."""
        return self._slice(name)[where or (slice(None),)]

    def chunks(self, name: str) -> Iterator[Shaped[ndarray, "rows columns"]]:
        """Yields a matrix, `CHUNK` rows at a time."""
        rows = self.shapes[name][0]
        for first in range(0, rows, CHUNK):
            yield self.read(name, slice(first, min(first + CHUNK, rows)))

    def _read_index(self) -> dict[str, str]:
        found = read_object(self.path, INDEX).get("weight_map")
        if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
            raise UserError(f"{self.path / INDEX}: has no weight_map of tensors and their files")
        files = sorted(set(found.values()))
        missing = [name for name in files if not inside(self.path, name).is_file()]
        if missing:
            raise UserError(f"{self.path}: {listed(missing)}: in {INDEX}, but not there")
        return found

    @cached_property
    def _files(self) -> dict[str, Any]:
        return {}

    def _open(self, file: str) -> Any:
        if file not in self._files:
            try:
                self._files[file] = safe_open(inside(self.path, file), framework="np")
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"{self.path / file}: is not a whole safetensors file ({shown(error)}); copy "
                    "it again"
                ) from None
        return self._files[file]

    def _slice(self, name: str) -> Any:
        try:
            return self._open(self.file_of[name]).get_slice(name)
        except SafetensorError:
            raise UserError(
                f"{self.path}: {INDEX} says that {name} is in {self.file_of[name]}; it is not"
            ) from None


@dataclasses.dataclass(frozen=True)
class Planned:
    """A tensor to be written; it is made with its file, so that one file is in memory at a time."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Shaped[ndarray, "..."]]


def write_folder(
    path: str | Path,
    tensors: Sequence[Planned],
    config: Mapping[str, Any],
    *,
    dtype: str,
    shard_bytes: int = SHARD_BYTES,
) -> Iterator[str]:
    """Writes config and tensors as `transformers` does; yields each file's name when it is written.

    Raises:
      UserError: the folder is not empty, or `dtype` is unknown.
    """
    path = Path(path)
    if path.exists() and any(path.iterdir()):
        raise UserError(f"{path}: is not empty; give a new folder")
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}: is none of {', '.join(DTYPES)}")
    path.mkdir(parents=True, exist_ok=True)
    groups = _groups(tensors, DTYPES[dtype].itemsize, shard_bytes)
    place: dict[str, str] = {}
    for number, group in enumerate(groups, start=1):
        file = SINGLE if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        arrays = {one.name: np.ascontiguousarray(one.make().astype(DTYPES[dtype])) for one in group}
        save_file(arrays, path / file, metadata={"format": "pt"})
        place |= dict.fromkeys(arrays, file)
        yield file
    if len(groups) > 1:
        total = sum(_bytes(one, DTYPES[dtype].itemsize) for one in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": place}
        artifacts.write_json(path / INDEX, index)
        yield INDEX
    # Written last: a folder without it is not read as a model.
    artifacts.write_bytes(path / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    yield CONFIG


def _bytes(tensor: Planned, itemsize: int) -> int:
    return int(np.prod(tensor.shape)) * itemsize


def _groups(tensors: Sequence[Planned], itemsize: int, most: int) -> list[list[Planned]]:
    groups: list[list[Planned]] = [[]]
    room = most
    for tensor in tensors:
        size = _bytes(tensor, itemsize)
        if groups[-1] and size > room:
            groups.append([])
            room = most
        groups[-1].append(tensor)
        room -= size
    return groups
