"""GGUF, the file of llama.cpp's models: what it says of a model, and its tensors as float32.

The format: docs/gguf.md of ggml; the blocks of quantised numbers: its ggml-common.h.
"""

import dataclasses
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from speechlm_jax.errors import UserError

MAGIC, VERSION = b"GGUF", 3
NUMBERS = "BbHhIif?..Qqd"  # struct's letter of each type of value, but for the next two
TEXT, LIST = 8, 9
ALIGNMENT = 32  # bytes, where a file names no other


@dataclasses.dataclass(frozen=True)
class Storage:
    """How a type of tensor is stored: rows of blocks, each of `size` numbers."""

    size: int
    block: np.dtype
    to_float32: Callable[[np.ndarray], np.ndarray]


def _q4_1_to_float32(blocks: np.ndarray) -> np.ndarray:
    """The first half of a block's numbers lies in the low halves of its bytes."""
    steps = np.concatenate([blocks["steps"] & 15, blocks["steps"] >> 4], axis=-1)
    return steps * _column(blocks["scale"]) + _column(blocks["least"])


def _q8_0_to_float32(blocks: np.ndarray) -> np.ndarray:
    return blocks["steps"] * _column(blocks["scale"])


def _column(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(np.float32)[..., None]


STORAGES = {
    0: Storage(1, np.dtype("<f4"), lambda numbers: numbers),
    3: Storage(
        32, np.dtype([("scale", "<f2"), ("least", "<f2"), ("steps", "u1", 16)]), _q4_1_to_float32
    ),
    8: Storage(32, np.dtype([("scale", "<f2"), ("steps", "i1", 32)]), _q8_0_to_float32),
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a file.

    Attributes:
      shape: as PyTorch says it; the file names the last axis first.
      kind: a key of `STORAGES`.
      start: its first byte, counted from the first one of all tensors.
    """

    shape: tuple[int, ...]
    kind: int
    start: int


@dataclasses.dataclass(frozen=True)
class Gguf:
    """A file: `fields` by name, and where its `tensors` lie in `data`."""

    fields: dict[str, Any]
    tensors: dict[str, Tensor]
    data: np.ndarray

    def read(self, name: str) -> np.ndarray:
        """A tensor as float32."""
        tensor = self.tensors[name]
        storage = STORAGES[tensor.kind]
        count = int(np.prod(tensor.shape)) // storage.size
        blocks = np.frombuffer(self.data, storage.block, count, tensor.start)
        return storage.to_float32(blocks).reshape(tensor.shape)


def read_gguf(path: str | Path) -> Gguf:
    """Reads what stands before the tensors; these are mapped into memory.

    Raises:
      UserError: it is no whole GGUF file of this version, or stores a tensor in another way.
    """
    data = np.memmap(path, mode="r") if Path(path).stat().st_size else np.zeros(0, np.uint8)
    at = _Cursor(data)
    try:
        if at.take(4) != MAGIC or at.number("I") != VERSION:
            raise UserError(f"{path}: is no GGUF file of version {VERSION}")
        tensor_count, field_count = at.number("Q"), at.number("Q")
        fields = dict(at.field() for _ in range(field_count))
        tensors = dict(at.tensor() for _ in range(tensor_count))
    except (struct.error, UnicodeDecodeError, IndexError):
        raise UserError(f"{path}: is no whole GGUF file; fetch it again") from None
    alignment = fields.get("general.alignment", ALIGNMENT)
    gguf = Gguf(fields, tensors, data[-(-at.place // alignment) * alignment :])
    for name, tensor in tensors.items():
        _check(path, name, tensor, len(gguf.data))
    return gguf


def _check(path: str | Path, name: str, tensor: Tensor, end: int) -> None:
    storage = STORAGES.get(tensor.kind)
    if storage is None or tensor.shape[-1] % storage.size:
        known = ", ".join(map(str, STORAGES))
        raise UserError(f"{path}: {name} is stored as type {tensor.kind}; give one of {known}")
    size = int(np.prod(tensor.shape)) // storage.size * storage.block.itemsize
    if tensor.start + size > end:
        raise UserError(f"{path}: is no whole GGUF file; fetch it again")


class Cursor:
    """Reads little-endian values one after the other; struct.error where the data ends."""

    def __init__(self, data: np.ndarray | bytes):
        self._data = memoryview(data)
        self.place = 0

    def take(self, size: int) -> bytes:
        taken = bytes(self._data[self.place : self.place + size])
        if len(taken) < size:
            raise struct.error("the file ends")
        self.place += size
        return taken

    def number(self, letter: str) -> Any:
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}")))[0]


class _Cursor(Cursor):
    """Reads values of GGUF."""

    def text(self) -> str:
        return self.take(self.number("Q")).decode()

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind == LIST:
            of, count = self.number("I"), self.number("Q")
            return [self.value(of) for _ in range(count)]
        return self.number(NUMBERS[kind])

    def field(self) -> tuple[str, Any]:
        return self.text(), self.value(self.number("I"))

    def tensor(self) -> tuple[str, Tensor]:
        name = self.text()
        shape = tuple(self.number("Q") for _ in range(self.number("I")))
        return name, Tensor(shape[::-1], kind=self.number("I"), start=self.number("Q"))
