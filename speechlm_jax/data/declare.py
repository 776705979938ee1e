"""Declares a folder of codes made elsewhere: checks its rows and names their tokenizer."""

from pathlib import Path
from typing import Literal

from speechlm_jax import artifacts
from speechlm_jax.codes import CodesIdentity
from speechlm_jax.data.sources import read_rows, row_files, row_to_example
from speechlm_jax.errors import UserError

_FIELDS = {"codes": "codes", "interleaved": "segments", "dialogues": "turns"}  # that hold codes


def declare_codes(
    folder: str | Path,
    *,
    tokenizer: str,
    frame_rate_hz: float,
    codebook_size: int,
    kind: Literal["codes", "interleaved", "dialogues"] = "codes",
) -> artifacts.Manifest:
    """Reads every row of a folder once and, if all are valid, writes its `stage.json`.

    Call it again after the files change: tasks refuse files that it has not seen. Row ids are held
    in memory, about 100 bytes a row.

    Args:
      folder: holds *.parquet or codes.jsonl (documents.jsonl, dialogues.jsonl); tasks/README.md
        describes their rows.
      tokenizer: exact identity of the speech tokenizer that made the codes, e.g. the SHA-256 of its
        weights; it must equal the vocabulary's `tokenizer_fingerprint`.
      frame_rate_hz: codes per second.
      codebook_size: entries of its codebook; codes are 0 .. codebook_size-1.
      kind: kind of the rows.

    Raises:
      UserError: a number is out of range, the folder has no rows, or a row has no codes, codes
        outside the codebook, or the id of an earlier row.
    """
    folder = Path(folder)
    if not tokenizer or not frame_rate_hz > 0 or codebook_size < 1:
        raise UserError(
            f"{folder}: tokenizer {tokenizer!r}, frame_rate_hz {frame_rate_hz}, codebook_size "
            f"{codebook_size}: name the tokenizer; the numbers must be above 0"
        )
    files = row_files(folder, kind)
    counts = {"rows": _check(files, _FIELDS[kind], codebook_size)}
    if not counts["rows"]:
        raise UserError(f"{folder}: holds no rows")
    return artifacts.write_manifest(
        folder, kind, inputs={"tokenizer": tokenizer}, config={}, counts=counts,
        files=[file.name for file in files],
        extra=CodesIdentity(tokenizer, float(frame_rate_hz), codebook_size).to_json(),
    )  # fmt: skip


def _check(files: list[Path], field: str, codebook_size: int) -> int:
    """Returns the number of rows; raises UserError for the first bad one."""
    seen: set[str] = set()
    for file in files:
        for row in read_rows(file):
            row_to_example(file, row, {field: field}, codebook_size=codebook_size)
            if str(row["id"]) in seen:
                raise UserError(f"{file}: row {row['id']!r} has the id of an earlier row")
            seen.add(str(row["id"]))
    return len(seen)
