"""Encodes rows as bytes; writes and reads shards of rows: a folder of ArrayRecord files and its
manifest, on disk or in a bucket.

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

from speechlm_jax import artifacts, bucket
from speechlm_jax import config as configs
from speechlm_jax.arrays import Int, ndarray
from speechlm_jax.data.bucket_rows import BucketRows, RowFetcher
from speechlm_jax.data.packing import Row
from speechlm_jax.data.row_files import RowFile, allow_open_files, with_offsets, write_offsets
from speechlm_jax.errors import UserError
from speechlm_jax.vocab import Vocab

KIND = "rows"
COUNTED = ("rows", "text_tokens", "speech_tokens")  # counts that plans need
# One record per group, so a row is read alone. Rows compress from 6.1 to about 2.5 bytes a token.
WRITER_OPTIONS = "group_size:1,zstd:3"


@dataclasses.dataclass(frozen=True)
class RowLayout:
    """Layout of a row in its record: ids | segments | positions | loss mask bits, little-endian.

    Attributes:
      length: ids per row.
      id_bytes: bytes per id, 2 or 4 (`Vocab.id_dtype`).
    """

    length: int
    id_bytes: int

    @classmethod
    def of(cls, vocab: Vocab, *, length: int) -> "RowLayout":
        """Returns the layout of rows of this vocabulary."""
        return cls(length=length, id_bytes=vocab.id_dtype.itemsize)

    @property
    def position_bytes(self) -> int:
        """Bytes per position: 2 while positions fit 16 bits, else 4."""
        return 2 if self.length <= 65_536 else 4

    @property
    def record_bytes(self) -> int:
        """Bytes of one record before compression."""
        return self.length * (self.id_bytes + 2 + self.position_bytes) + -(-self.length // 8)

    def row_to_bytes(self, row: Row) -> bytes:
        """Encodes a row; raises ValueError if it does not fit this layout."""
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
        """Decodes what `row_to_bytes` gave; raises ValueError if the record has another size."""
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
    """Counts of rows and ids; specials count as text, `loss_tokens` are the predicted ids."""

    rows: int = 0
    tokens: int = 0
    text_tokens: int = 0
    speech_tokens: int = 0
    loss_tokens: int = 0

    def add(self, row: Row, vocab: Vocab) -> None:
        """Adds the counts of one row."""
        tokens = int((row.segments > 0).sum())
        speech = int((vocab.is_speech(row.ids) & (row.segments > 0)).sum())
        self.rows += 1
        self.tokens += tokens
        self.speech_tokens += speech
        self.text_tokens += tokens - speech
        self.loss_tokens += int(row.loss_mask.sum())


def write_rows(path: str | Path, rows: Iterable[Row], *, vocab: Vocab, length: int) -> RowCounts:
    """Writes one ArrayRecord file whole or not at all, its offsets first; returns its counts."""
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
        write_offsets(temporary, counts.rows, beside=path)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return counts


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
    """Writes the manifest that finishes a folder of row files; rows are numbered in file order."""
    files = [with_offsets(Path(folder), file) for file in files]
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


@dataclasses.dataclass(frozen=True)
class _Extra:
    """Fields of a row manifest that readers need."""

    task: str
    length: int
    vocab: Vocab
    row_files: tuple[RowFile, ...]

    def __post_init__(self) -> None:
        if self.length < 1:
            raise UserError(f"length {self.length}: must be above 0")


def read_row_manifest(folder: str | Path) -> artifacts.Manifest:
    """Reads a manifest of rows; raises UserError if there is none, or one of something else."""
    return _read_manifest(folder)[0]


def _read_manifest(folder: str | Path) -> tuple[artifacts.Manifest, _Extra]:
    manifest = artifacts.read_manifest(folder)
    if manifest.kind != KIND:
        raise UserError(
            f"{folder}: holds {manifest.kind}, not rows; give a folder that `prepare` made"
        )
    try:
        names = [field.name for field in dataclasses.fields(_Extra) if field.name in manifest.extra]
        extra = configs.from_json(_Extra, {name: manifest.extra[name] for name in names})
        for name in COUNTED:
            if type(manifest.counts.get(name)) is not int or manifest.counts[name] < 0:
                raise UserError(f"counts no {name}")
    except UserError as error:
        wrong = f"{folder}: {artifacts.MANIFEST} is damaged ({error}); {_MEND}"
        raise UserError(wrong) from None
    return manifest, extra


def add_offsets(folder: str | Path) -> None:
    """Adds the offsets that a finished local folder lacks, for reading it from a bucket.

    The fingerprint of the rows (`Manifest.fingerprint`) does not change.
    """
    manifest, found = _read_manifest(folder)
    files = found.row_files
    if all(file.offsets for file in files):
        return
    files = [with_offsets(Path(folder), file) for file in files]
    extra = manifest.extra | {"row_files": [dataclasses.asdict(file) for file in files]}
    data = dataclasses.asdict(manifest) | {"extra": extra}
    artifacts.write_json(Path(folder) / artifacts.MANIFEST, data)


class RowShards:
    """The rows of one task and split, by number; safe to read from threads.

    Attributes:
      folder: local folder, or address in a bucket.
      task: name of the task.
      length: ids per row.
      vocab: vocabulary of the ids.
      counts: rows and tokens by modality, from the manifest.
      fingerprint: fingerprint of the files' contents.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        vocab: Vocab | None = None,
        fetcher: RowFetcher | None = None,
    ):
        """Opens a folder and checks sizes; contents are checked by `verify`, or as rows are read.

        Args:
          folder: a local folder, or an address in a bucket.
          vocab: vocabulary that the rows must have.
          fetcher: fetcher of rows in a bucket; a new one by default.

        Raises:
          UserError: the folder is unfinished or damaged, or has another vocabulary.
        """
        self.folder = folder if bucket.is_address(folder) else Path(folder)
        manifest, extra = _read_manifest(folder)
        self.task, self.length, self.vocab = extra.task, extra.length, extra.vocab
        self.counts, self.fingerprint = manifest.counts, manifest.fingerprint
        if vocab is not None:
            vocab.require_same(self.vocab, "this run", str(folder))
        self._layout = RowLayout.of(self.vocab, length=self.length)
        files = extra.row_files
        self._check_sizes(files)
        self._size = sum(file.rows for file in files)
        self._records: Any = (
            BucketRows(str(folder), files, fetcher or RowFetcher())
            if bucket.is_address(folder)
            else _local_records(Path(folder), files)
        )

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, number: SupportsIndex) -> dict[str, np.ndarray]:
        """Returns a row: ids, segments, positions (int32), loss_mask (float32); each " length"."""
        number = operator.index(number)
        if not 0 <= number < self._size:
            raise IndexError(f"row {number} of {self._size} in {self.folder}")
        try:
            row = self._layout.bytes_to_row(self._records[number])
            if (most := int(row.ids.max())) >= self.vocab.size:
                raise ValueError(f"id {most}; the vocabulary has ids 0..{self.vocab.size - 1}")
        except (ValueError, RuntimeError) as error:  # ours, array_record's
            line = str(error).partition("\n")[0]
            raise UserError(f"{self.folder}: row {number} is damaged ({line}); {_MEND}") from None
        return {
            "ids": row.ids,
            "segments": row.segments,
            "positions": row.positions,
            "loss_mask": row.loss_mask.astype(np.float32),
        }

    def expect(self, numbers: Iterable[int]) -> None:
        """Announces the rows that are read next; those in a bucket are fetched meanwhile."""
        if isinstance(self._records, BucketRows):
            self._records.expect(numbers)

    def is_at_hand(self, number: int) -> bool:
        """Returns whether reading a row sends no request: it is local, cached or requested."""
        return not isinstance(self._records, BucketRows) or self._records.is_at_hand(number)

    def batches_ahead(self, rows: int) -> int:
        """Returns how many batches of `rows` rows to `expect`: 0 if the rows lie on disk.

        Raises:
          UserError: the local cache is too small for two of them.
        """
        ours = isinstance(self._records, BucketRows) and self._size
        return self._records.batches_ahead(rows) if ours else 0

    def verify(self) -> None:
        """Reads every file and compares its SHA-256; UserError names those that changed."""
        bucket.require_folder(self.folder, "rows to verify:")
        changed = artifacts.verify(self.folder)
        if changed:
            raise UserError(f"{self.folder}: {', '.join(changed)} changed since prepared; {_MEND}")

    def _check_sizes(self, files: Iterable[RowFile]) -> None:
        if bucket.is_address(self.folder):
            sizes = bucket.file_sizes(str(self.folder))
        else:
            paths = [Path(self.folder) / file.name for file in files]
            sizes = {path.name: path.stat().st_size for path in paths if path.is_file()}
        for file in files:
            if (size := sizes.get(file.name)) != file.size_bytes:
                found = "missing" if size is None else f"{size} bytes, not {file.size_bytes}"
                raise UserError(f"{bucket.join(self.folder, file.name)}: {found}; {_MEND}")


def _local_records(folder: Path, files: Iterable[RowFile]) -> Any:
    """Returns the records of local files, by number; opens no file before a row is read."""
    instructions = [
        _FileInstruction(str(folder / file.name), 0, file.rows, file.rows)
        for file in files
        if file.rows
    ]
    allow_open_files(len(instructions))
    # Any object with these four fields works, though the annotation does not say so.
    return (
        grain.sources.ArrayRecordDataSource(instructions)  # pyright: ignore[reportArgumentType]
        if instructions
        else ()
    )


@dataclasses.dataclass(frozen=True)
class _FileInstruction:
    """Description of a file with which array_record need not open the file at once."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


_MEND = "delete the folder and prepare again"
