"""Rows <-> bytes, and shards of rows on disk: a folder of ArrayRecord files and its manifest.

A shard folder belongs to no mixture and no run: any plan may read its rows by number.
"""

import dataclasses
import operator
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, SupportsIndex

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from speechlm_jax import artifacts
from speechlm_jax.arrays import Int, ndarray
from speechlm_jax.data.packing import Row
from speechlm_jax.errors import UserError
from speechlm_jax.vocab import Vocab

KIND = "rows"
# One record a group: any row is read on its own. Rows compress from 6.1 to about 2.5 bytes a token.
WRITER_OPTIONS = "group_size:1,zstd:3"


@dataclasses.dataclass(frozen=True)
class RowLayout:
    """How a row lies in its record: ids | segments | positions | loss mask bits, little-endian.

    Attributes:
      length: ids in a row.
      id_bytes: 2 or 4 (`Vocab.id_dtype`).
    """

    length: int
    id_bytes: int

    @classmethod
    def of(cls, vocab: Vocab, *, length: int) -> "RowLayout":
        """The layout of rows of this vocabulary."""
        return cls(length=length, id_bytes=vocab.id_dtype.itemsize)

    @property
    def position_bytes(self) -> int:
        """2 while positions fit 16 bits, else 4."""
        return 2 if self.length <= 65_536 else 4

    @property
    def record_bytes(self) -> int:
        """Bytes of one record before compression."""
        return self.length * (self.id_bytes + 2 + self.position_bytes) + -(-self.length // 8)

    def row_to_bytes(self, row: Row) -> bytes:
        """Encodes a row; ValueError if it does not fit this layout."""
        if len(row.ids) != self.length:
            raise ValueError(f"a row of {len(row.ids)} ids, not {self.length}")
        return b"".join(
            [
                _narrow(row.ids, self.id_bytes),
                _narrow(row.segments, 2),
                _narrow(row.positions, self.position_bytes),
                np.packbits(row.loss_mask).tobytes(),
            ]
        )

    def bytes_to_row(self, data: bytes) -> Row:
        """The inverse of `row_to_bytes`; ValueError if the record has another size."""
        if len(data) != self.record_bytes:
            raise ValueError(f"a record of {len(data)} bytes, not {self.record_bytes}")
        parts, at = [], 0
        for width in (self.id_bytes, 2, self.position_bytes):
            part = np.frombuffer(data, f"<u{width}", self.length, at)
            parts.append(part.astype(np.int32))
            at += self.length * width
        bits = np.frombuffer(data, np.uint8, offset=at)
        return Row(*parts, loss_mask=np.unpackbits(bits, count=self.length).astype(bool))


def _narrow(values: Int[ndarray, " length"], width: int) -> bytes:
    if values.size and not 0 <= int(values.min()) <= int(values.max()) < 256**width:
        raise ValueError(f"values {values.min()}..{values.max()} do not fit {width} bytes")
    return values.astype(f"<u{width}").tobytes()


@dataclasses.dataclass
class RowCounts:
    """What rows hold; specials count as text, `loss_tokens` are the ids that are predicted."""

    rows: int = 0
    tokens: int = 0
    text_tokens: int = 0
    speech_tokens: int = 0
    loss_tokens: int = 0

    def add(self, row: Row, vocab: Vocab) -> None:
        """Counts one row."""
        tokens = int((row.segments > 0).sum())
        speech = int((vocab.is_speech(row.ids) & (row.segments > 0)).sum())
        self.rows += 1
        self.tokens += tokens
        self.speech_tokens += speech
        self.text_tokens += tokens - speech
        self.loss_tokens += int(row.loss_mask.sum())


def write_rows(path: str | Path, rows: Iterable[Row], *, vocab: Vocab, length: int) -> RowCounts:
    """Writes one ArrayRecord file whole or not at all, and counts what it holds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    layout, counts = RowLayout.of(vocab, length=length), RowCounts()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        writer = ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
        try:
            for row in rows:
                writer.write(layout.row_to_bytes(row))
                counts.add(row, vocab)
        finally:
            writer.close()
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return counts


@dataclasses.dataclass(frozen=True)
class RowFile:
    """One file of a shard folder: its name, rows and bytes."""

    name: str
    rows: int
    size_bytes: int


def write_row_manifest(
    folder: str | Path,
    files: Iterable[RowFile],
    *,
    task: str,
    split: str,
    vocab: Vocab,
    length: int,
    counts: dict[str, Any],
    inputs: dict[str, str],
    config: dict[str, Any],
    seed: int,
) -> artifacts.Manifest:
    """Writes the manifest that finishes a folder of row files; rows are in file order."""
    files = list(files)
    return artifacts.write_manifest(
        folder,
        KIND,
        inputs=inputs,
        config=config,
        seed=seed,
        counts=counts,
        files=[file.name for file in files],
        extra={
            "task": task,
            "split": split,
            "length": length,
            "vocab": vocab.to_json(),
            "vocab_fingerprint": vocab.fingerprint,
            "row_files": [dataclasses.asdict(file) for file in files],
        },
    )


class RowShards:
    """The rows of one task and split, by number; safe to read from threads.

    Attributes:
      task: name of the task.
      length: ids in a row.
      vocab: the vocabulary of the ids.
      counts: rows and tokens by modality, from the manifest.
      fingerprint: names what the files hold.
    """

    def __init__(self, folder: str | Path, *, vocab: Vocab | None = None):
        """Opens a folder: sizes are checked here, contents by `verify`.

        Raises:
          UserError: the folder is unfinished or damaged, or made with another vocabulary.
        """
        self.folder = Path(folder)
        manifest = artifacts.read_manifest(folder)
        if manifest.kind != KIND:
            raise UserError(
                f"{folder}: holds {manifest.kind}, not rows; give a folder that `prepare` made"
            )
        self.task, self.length = manifest.extra["task"], manifest.extra["length"]
        self.vocab = Vocab.from_json(manifest.extra["vocab"])
        self.counts, self.fingerprint = manifest.counts, manifest.fingerprint
        if vocab is not None:
            vocab.require_same(self.vocab, "this run", str(folder))
        self._layout = RowLayout.of(self.vocab, length=self.length)
        files = [RowFile(**file) for file in manifest.extra["row_files"]]
        for file in files:
            self._check_size(file)
        self._size = sum(file.rows for file in files)
        # The rows of each file are known: nothing is opened before a row is asked for.
        instructions = [
            _FileInstruction(str(self.folder / file.name), 0, file.rows, file.rows)
            for file in files
            if file.rows
        ]
        # Any object with these four fields will do, which the annotation does not say.
        self._records = (
            grain.sources.ArrayRecordDataSource(instructions)  # pyright: ignore[reportArgumentType]
            if instructions
            else ()
        )

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, number: SupportsIndex) -> dict[str, np.ndarray]:
        """A row: ids, segments, positions (int32) and loss_mask (float32), each " length"."""
        number = operator.index(number)
        if not 0 <= number < self._size:
            raise IndexError(f"row {number} of {self._size} in {self.folder}")
        try:
            row = self._layout.bytes_to_row(self._records[number])
        except ValueError as error:
            raise UserError(f"{self.folder}: row {number} is damaged ({error}); {_MEND}") from None
        return {
            "ids": row.ids,
            "segments": row.segments,
            "positions": row.positions,
            "loss_mask": row.loss_mask.astype(np.float32),
        }

    def verify(self) -> None:
        """Reads every file and compares its SHA-256; UserError names those that changed."""
        changed = artifacts.verify(self.folder)
        if changed:
            raise UserError(f"{self.folder}: {', '.join(changed)} changed since prepared; {_MEND}")

    def _check_size(self, file: RowFile) -> None:
        path = self.folder / file.name
        size = path.stat().st_size if path.is_file() else None
        if size != file.size_bytes:
            found = "missing" if size is None else f"{size} bytes, not {file.size_bytes}"
            raise UserError(f"{path}: {found}; {_MEND}")


@dataclasses.dataclass(frozen=True)
class _FileInstruction:
    """What array_record wants to know of a file in order not to open it at once."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


_MEND = "delete the folder and prepare again"
