"""Reads and writes the rows of a Parquet file as plain values, a few hundred at a time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from speechlm_jax.errors import UserError

# At 12.5 Hz a row of 30 s is 375 codes, in Python objects about 15 kB: a batch is a few megabytes.
BATCH_ROWS = 256
_BUFFER_BYTES = 1 << 16


def read_parquet(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a Parquet file in order; reads in batches and never holds the whole file.

    A null is left out of its row or struct, so that a row equals a line of JSON without that field.
    Nulls within a list of numbers stay.

    Raises:
      UserError: the file is missing or broken, or pyarrow is not installed.
    """
    try:
        # Imported here: a host that only trains or synthesizes does not need it.
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: is read with pyarrow; pip install pyarrow") from None
    try:
        # With pre_buffer, which is the default, all of the file's bytes are kept until its end.
        with pyarrow.parquet.ParquetFile(
            path, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True
        ) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                yield from map(_without_nulls, batch.to_pylist())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot be read as Parquet ({reason})") from None


class ParquetRows:
    """A Parquet file of rows with codes, which is written row by row; a context.

    Fields that every row of a recording has are columns; all others are a JSON object in the column
    `fields`.
    """

    def __init__(self, file: BinaryIO):
        """Raises UserError if pyarrow is not installed."""
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise UserError("Parquet is written with pyarrow; pip install pyarrow") from None
        kinds = {
            **dict.fromkeys(
                ("id", "audio", "text", "speaker", "split", "sha256"), pyarrow.string()
            ),
            **dict.fromkeys(("start", "seconds"), pyarrow.float64()),
            "codes": pyarrow.list_(pyarrow.int32()),
            "fields": pyarrow.string(),
        }
        self._schema, self._table = pyarrow.schema(kinds.items()), pyarrow.Table
        self._file = pyarrow.parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> "ParquetRows":
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._file.close()

    def write(self, row: dict[str, Any]) -> None:
        """Writes a row."""
        known = {name: row[name] for name in self._schema.names if name in row}
        others = {name: value for name, value in row.items() if name not in known}
        if others:
            known["fields"] = json.dumps(others, ensure_ascii=False)
        self._rows.append(known)
        if len(self._rows) == BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._file.write_table(self._table.from_pylist(self._rows, schema=self._schema))
            self._rows = []


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(v) for name, v in value.items() if v is not None}
    if isinstance(value, list) and dict in map(type, value):
        return [_without_nulls(v) for v in value]
    return value
