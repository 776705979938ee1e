"""Reads text files, codes folders and interleaved folders as rows of a split, in plain Python."""

import dataclasses
import glob
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechlm_jax import artifacts
from speechlm_jax.codes import CODES, KIND, read_identity
from speechlm_jax.data.code_identity import code_identity
from speechlm_jax.data.content import row_to_text, said_key
from speechlm_jax.data.formats import segments_to_text
from speechlm_jax.data.parquet import read_parquet
from speechlm_jax.errors import UserError
from speechlm_jax.text import is_unicode
from speechlm_jax.vocab import Vocab

SPLITS = ("train", "validation")
SPLIT_VERSION = 2  # version of the rule by which rows are held out
# Files that hold neither rows nor, as all other files may, one document per line.
NO_LINES = (".json", ".ndjson", ".csv", ".tsv", ".zip", ".tar", ".tgz", ".bz2", ".xz", ".zst")
ROW_FILES = {  # by the manifest's kind; or any number of *.parquet
    KIND: CODES,
    "interleaved": "documents.jsonl",
    "dialogues": "dialogues.jsonl",
}
NO_TEXT = (  # advice for a row of codes
    "; for codes of recordings write it to manifest.jsonl or clip.txt beside them and tokenize "
    "again, or leave such rows out by `keep`"
)
ROLES = ("system", "user", "assistant")

# A callable is called when the data is read, so that registering needs no file.
Place = str | Path | Callable[[], str | Path | Sequence[str | Path]]
Keep = Callable[[dict[str, Any]], bool]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of some places, and the rule that assigns them to splits.

    A row belongs to the split that its "split" field names; without one, to "validation" if its key
    lies below `validation_ratio` (of the range of keys) or is in `held_out`, else to "train". The
    key is made from what the row says (`content.said_key`), or from its id if it says nothing.

    Attributes:
      places: files or globs (.txt: a document per line; .jsonl: a row per line; .parquet; the first
        two also .gz), or finished folders.
      are_folders: true if the places are folders, false if they are files or globs.
      fields: what an example holds ("text", "codes", "segments") -> the row's field it comes from.
      validation_ratio: fraction held out of the rows that name no split.
      keep: predicate of the rows to take; None takes all.
      held_out: keys that are held out though they lie above the ratio (`splits.agree`).
      by_id: true if keys are made from the rows' ids, whatever the rows say.
    """

    places: tuple[Place, ...]
    are_folders: bool
    fields: Mapping[str, str]
    validation_ratio: float = 0.01
    keep: Keep | None = None
    held_out: frozenset[int] = frozenset()
    by_id: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.validation_ratio <= 1:
            raise UserError(f"validation_ratio {self.validation_ratio}: must be from 0 to 1")

    def files(self) -> list[Path]:
        """Returns the row files in order; raises UserError if a place has none."""
        if not self.are_folders:
            return [file for place in self.paths() for file in _glob(place)]
        return [
            file for folder in self.paths() for file in row_files(folder, _manifest(folder).kind)
        ]

    def paths(self) -> list[Path]:
        """Returns the paths of the places; calls those that are callables."""
        now = [place() if callable(place) else place for place in self.places]
        return [
            Path(p) for found in now for p in ([found] if isinstance(found, (str, Path)) else found)
        ]

    def identity(self) -> Any:
        """Returns the identity of the rows: the files' contents, and what is taken of them.

        Raises:
          UserError: a place has no files, or a folder's files are not those in its manifest.
        """
        if self.are_folders:
            data: Any = [_unchanged(folder).fingerprint for folder in self.paths()]
        else:
            data = [[file.name, artifacts.sha256_file(file)] for file in self.files()]
        keep = code_identity(self.keep) if self.keep else None
        split = [SPLIT_VERSION, self.validation_ratio, sorted(self.held_out), self.by_id]
        return [data, dict(self.fields), split, keep]

    def check(self, vocab: Vocab) -> None:
        """Raises UserError if codes come from another speech tokenizer than the vocabulary's."""
        if self.are_folders and set(self.fields) & {"codes", "segments", "turns"}:
            for folder in self.paths():
                _check_codes(folder, vocab)

    def examples(
        self,
        files: Sequence[Path],
        split: str,
        *,
        codebook_size: int | None = None,
        passed_over: Counter[str] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yields the examples of `files` in a split, in order; segments and turns are JSON.

        Args:
          files: some of `files()`.
          split: split of the examples.
          codebook_size: number below which codes must lie; None for no limit.
          passed_over: counts, by split, the rows that are in none of SPLITS.

        Raises:
          UserError: a row cannot be read, lacks a field, or has codes outside the codebook.
        """
        for file in files:
            for row in read_rows(file):
                its_split = self.split_of(row)
                if passed_over is not None and its_split not in SPLITS:
                    passed_over[its_split] += 1
                if its_split == split and (self.keep is None or self.keep(row)):
                    yield row_to_example(file, row, self.fields, codebook_size=codebook_size)

    def split_of(self, row: Mapping[str, Any]) -> str:
        """Returns the split of a row."""
        if row.get("split") is not None:
            return str(row["split"])
        key = self.key(row)
        return SPLITS[key < self.first_trained or key in self.held_out]

    @property
    def first_trained(self) -> int:
        """First key above the ratio."""
        return int(self.validation_ratio * 2**64)

    def key(self, row: Mapping[str, Any]) -> int:
        """Returns the key that decides on the split of a row that names none."""
        said = "" if self.by_id else row_to_text(row, self.fields.get("text", "text"))
        return said_key(said, otherwise=str(row["id"]))


class _BadRow(Exception):
    """A fault of a row, to be reported with its file and id."""


def row_to_example(
    file: Path, row: Mapping[str, Any], fields: Mapping[str, str], *, codebook_size: int | None
) -> dict[str, Any]:
    """Returns the `fields` of a row, as in `Rows`; segments and turns become JSON.

    Raises:
      UserError: a field is missing or wrong; the message names `file` and the row's id.
    """
    try:
        return {name: _to_value(row, name, field, codebook_size) for name, field in fields.items()}
    except _BadRow as error:
        raise UserError(f"{file}: row {row['id']!r} {error}") from None


def _to_value(row: Mapping[str, Any], name: str, field: str, codebook_size: int | None) -> Any:
    value = row.get(field)
    if name == "text" and value is None and "segments" in row:
        value = _segments_to_text(row["segments"])
    if value is None:
        is_of_codes = name == "text" and "codes" in row
        raise _BadRow(f"has no field '{field}'{NO_TEXT if is_of_codes else ''}")
    if name == "codes":
        return _to_codes(value, field, codebook_size)
    if name == "segments":
        return json.dumps(_to_segments(value, field, codebook_size))
    if name == "turns":
        return json.dumps(_to_turns(value, field, codebook_size))
    if not isinstance(value, str) or not is_unicode(value):
        raise _BadRow(f"has no text in '{field}'")
    return value.removeprefix("\ufeff")


def _to_codes(value: Any, field: str, codebook_size: int | None) -> np.ndarray:
    try:
        codes = np.asarray(value, np.int32)
        is_whole = not codes.size or np.asarray(value).dtype.kind in "iu"  # not 1.5, not True
    except (TypeError, ValueError, OverflowError):
        codes, is_whole = np.zeros(0, np.int32), False
    if not is_whole or codes.ndim != 1:
        raise _BadRow(f"has no list of codes in '{field}'")
    if (
        codebook_size is not None
        and codes.size
        and not 0 <= codes.min() <= codes.max() < codebook_size
    ):
        raise _BadRow(f"has codes outside 0..{codebook_size - 1} in '{field}'")
    return codes


def _to_segments(value: Any, field: str, codebook_size: int | None) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(segment, dict) for segment in value):
        raise _BadRow(f"has no list of segments in '{field}'")
    for segment in value:
        if "codes" in segment:
            _to_codes(segment["codes"], field, codebook_size)
        elif not isinstance(segment.get("text"), str):
            raise _BadRow(f"has a segment with neither codes nor text in '{field}'")
    return value


def _segments_to_text(segments: Any) -> str:
    """Returns the text of segments; that of a segment of codes is its "text"."""
    if not all(
        isinstance(segment.get("text"), str) for segment in _to_segments(segments, "segments", None)
    ):
        raise _BadRow("has a segment without text in 'segments'")
    return segments_to_text(segments)


def _to_turns(value: Any, field: str, codebook_size: int | None) -> list[dict[str, Any]]:
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(turn, dict) for turn in value)
    ):
        raise _BadRow(f"has no list of turns in '{field}'")
    for turn in value:
        if turn.get("role") not in ROLES:
            raise _BadRow(f"has a turn in '{field}' whose role is none of {', '.join(ROLES)}")
        _to_segments(turn.get("segments"), field, codebook_size)
    if value[-1]["role"] != "assistant":
        raise _BadRow(f"has turns in '{field}' that do not end with the assistant's")
    return value


def _glob(place: Path) -> list[Path]:
    """Returns the files that a place names: itself, or matches of wildcards (`*?[` and `**`)."""
    if place.is_dir():
        raise UserError(f"{place}: is a folder; name its files, e.g. {place / '*.txt'}")
    if place.is_file():
        return [place]
    found = [Path(name) for name in sorted(glob.glob(str(place), recursive=True))]
    files = [path for path in found if path.is_file()]
    if not files:
        raise UserError(f"{place}: no such text file" + (", only folders" if found else ""))
    return files


def row_files(folder: Path, kind: str) -> list[Path]:
    """Returns the files that hold a folder's rows, in order of their names.

    Raises:
      UserError: the folder holds no such rows, or holds both JSON lines and Parquet.
    """
    if kind not in ROW_FILES:
        raise UserError(
            f"{folder}: holds {kind}; a task reads a folder of codes or of interleaved documents"
        )
    lines, parquet = folder / ROW_FILES[kind], sorted(folder.glob("*.parquet"))
    if lines.is_file() and parquet:
        raise UserError(f"{folder}: holds {lines.name} and {parquet[0].name}; keep one of the two")
    if not lines.is_file() and not parquet:
        raise UserError(f"{folder}: holds neither {lines.name} nor *.parquet")
    return parquet or [lines]


def _manifest(folder: Path) -> artifacts.Manifest:
    if folder.is_dir() and not (folder / artifacts.MANIFEST).is_file():
        raise UserError(
            f"{folder}: has no {artifacts.MANIFEST}; run its stage, or for codes made elsewhere "
            "data.declare.declare_codes (tasks/README.md)"
        )
    return artifacts.read_manifest(folder)


def _unchanged(folder: Path) -> artifacts.Manifest:
    """Returns a folder's manifest; raises UserError if the row files differ from it."""
    manifest = _manifest(folder)
    files = row_files(folder, manifest.kind)
    found = {(file.name, artifacts.sha256_file(file)) for file in files}
    named = {
        (name, digest)
        for name, digest in manifest.files.items()
        if name == ROW_FILES[manifest.kind] or name.endswith(".parquet")
    }
    if found != named:
        name = min(found ^ named)[0]
        raise UserError(
            f"{folder / name}: is not what {artifacts.MANIFEST} names; run its stage again, or for "
            "codes made elsewhere data.declare.declare_codes"
        )
    return manifest


def _check_codes(folder: Path, vocab: Vocab) -> None:
    read_identity(folder).require_same(
        vocab.codes, f"{folder}: codes have", "the vocabulary has",
        "tokenize the recordings again with the vocabulary's speech tokenizer",
    )  # fmt: skip


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yields rows of .jsonl or .parquet, else lines as {"id", "text"}; each has an id.

    Files of lines may be compressed (.gz).

    Raises:
      UserError: a row or the file cannot be read, or the kind of file holds neither rows nor lines.
    """
    for number, row in numbered_rows(file):
        if isinstance(row, UserError):
            raise row
        yield row if "id" in row else row | {"id": f"{file.name}:{number}"}


def numbered_rows(file: Path) -> Iterator[tuple[int, dict[str, Any] | UserError]]:
    """Yields the number of a line (in Parquet: of a row) and the row, as `read_rows` without ids.

    For a broken line it yields the error in place of the row; faults of a whole file are raised.
    """
    name = file.name.lower()
    if name.removesuffix(".gz").endswith(NO_LINES) or name.endswith(".parquet.gz"):
        raise UserError(f"{file}: is not read; give .txt or .jsonl (or .gz of them), or .parquet")
    if name.endswith(".parquet"):
        yield from enumerate(read_parquet(file), 1)
    elif name.removesuffix(".gz").endswith(".jsonl"):
        yield from artifacts.numbered_jsonl(file)
    else:
        lines = enumerate(artifacts.read_lines(file), 1)
        yield from ((number, {"text": line}) for number, line in lines if line.strip())
