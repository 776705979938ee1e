"""Files of rows, and the offset of each row in its file: `rows-00000.arrayrecord.offsets`.

A row of a bucket is read as a byte range, so its offsets are written together with the file. They
follow from the headers of Riegeli's chunks (its specification, `riegeli_records_file_format.md`):
40 bytes, then the data. A header of 24 bytes stands at each multiple of 64 KiB, inside a chunk or
before it.
"""

import dataclasses
import os
import resource
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from speechlm_jax import artifacts
from speechlm_jax.arrays import UInt, ndarray
from speechlm_jax.errors import UserError

_BLOCK, _BLOCK_HEADER = 1 << 16, 24
_CHUNK_HEADER = struct.Struct("<8xQ8xQ8x")  # bytes of data; type byte, number of records above it
_RECORDS, _KINDS = ord("r"), b"smprt"  # types of Riegeli's chunks
_LEAST_BYTES = _CHUNK_HEADER.size  # lower limit of a row's size


@dataclasses.dataclass(frozen=True)
class RowFile:
    """One file of a shard folder: its name, rows, bytes, and the SHA-256 of its offsets.

    Raises:
      UserError: there can be no such file.
    """

    name: str
    rows: int
    size_bytes: int
    offsets: str = ""

    def __post_init__(self) -> None:
        if not all(map(artifacts.is_file_name, (self.name, self.offsets_name))):
            raise UserError(f"file of rows {self.name!r}: is no name of a file in its folder")
        if not 0 <= self.rows * _LEAST_BYTES <= self.size_bytes:
            raise UserError(
                f"file of rows {self.name}: {self.rows} rows are not in {self.size_bytes} bytes"
            )

    @property
    def offsets_name(self) -> str:
        """Name of the file of the offsets, in the same folder."""
        return f"{self.name}.offsets"


def allow_open_files(files: int) -> None:
    """Allows this process to keep `files` files of rows open; most systems start with 1,024.

    Raises:
      UserError: the system does not allow it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * files + 512  # as many again, and 512, for all other files
    if soft == resource.RLIM_INFINITY or wanted <= soft // 2:
        return
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise UserError(
            f"rows lie in {files} files or more, this host may open {hard} (`ulimit -n`); "
            "raise it, or prepare in fewer files"
        )
    much = max(4 * wanted, 1 << 16)  # other tasks have files too
    allowed = much if hard == resource.RLIM_INFINITY else min(much, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def write_offsets(path: Path, rows: int, *, beside: Path | None = None) -> None:
    """Finds the offsets of a file's rows, and writes them beside the file (or beside another)."""
    offsets = find_offsets(path, rows)
    beside = beside or path
    artifacts.write_bytes(beside.with_name(f"{beside.name}.offsets"), offsets.tobytes())


def with_offsets(folder: Path, file: RowFile) -> RowFile:
    """Returns the same file with the hash of its offsets, which are written if missing.

    Raises:
      UserError: the file is damaged.
    """
    if not (folder / file.offsets_name).is_file():
        try:
            write_offsets(folder / file.name, file.rows)
        except ValueError as error:
            raise UserError(f"{error}; delete the folder and prepare again") from None
    return dataclasses.replace(file, offsets=artifacts.sha256_file(folder / file.offsets_name))


def find_offsets(path: Path, rows: int) -> UInt[ndarray, " offsets"]:
    """Returns where each row of a local file begins and the last one ends: bytes, little-endian.

    Raises:
      ValueError: the file does not have one chunk for each of `rows` rows.
    """
    offsets, size = [], os.path.getsize(path)
    wrong = ValueError(f"{path}: has not one chunk for each of {rows} rows")
    if not 0 <= rows <= size // _LEAST_BYTES:
        raise wrong
    with open(path, "rb") as file:
        begin = 0
        while len(offsets) <= rows and begin < size:
            header, at = _read(file, begin, _CHUNK_HEADER.size)
            length, kind = _CHUNK_HEADER.unpack(header)
            records, kind = kind >> 8, kind & 0xFF
            if kind not in _KINDS or length > size - at:
                raise ValueError(f"{path}: holds no chunk at {begin} that the file has room for")
            if kind == _RECORDS:
                # after the rows comes the footer: a record on the file, and one on each row
                if records != (1 if len(offsets) < rows else rows + 1):
                    break
                offsets.append(begin)
            begin = max(_skip(at, length), begin + records)
    if len(offsets) != rows + 1:
        raise wrong
    return np.array(offsets, "<u8")


def _skip(at: int, length: int) -> int:
    """Returns the place `length` bytes of a chunk after `at`; skips block headers on the way."""
    if not length:
        return at
    if at % _BLOCK == 0:
        at += _BLOCK_HEADER
    # one header for each block that begins on the way and holds at least one of these bytes
    inside = at % _BLOCK - _BLOCK_HEADER
    return at + length + (inside + length - 1) // (_BLOCK - _BLOCK_HEADER) * _BLOCK_HEADER


def _read(file: BinaryIO, at: int, length: int) -> tuple[bytes, int]:
    """Reads `length` bytes of a chunk from `at`; returns them and the place after them."""
    data = b""
    while len(data) < length:
        if at % _BLOCK == 0:
            at += _BLOCK_HEADER
        file.seek(at)
        part = file.read(min(length - len(data), _BLOCK - at % _BLOCK))
        if not part:
            raise ValueError(f"{file.name}: ends inside a chunk")
        data, at = data + part, at + len(part)
    return data, at
