"""Reads the rows of a Parquet file as plain Python values, a few hundred at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(v) for name, v in value.items() if v is not None}
    if isinstance(value, list) and dict in map(type, value):
        return [_without_nulls(v) for v in value]
    return value
