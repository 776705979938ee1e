"""Writes files that survive a crash, and the manifest beside every stage's output.

A stage writes its folder, then its manifest last, atomically: a folder with a manifest is whole.
`is_current` tells whether a folder was made from these inputs with this config; a stage whose
manifest is current is not run again.
"""

import dataclasses
import gzip
import hashlib
import io
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from speechlm_jax import bucket
from speechlm_jax import config as configs
from speechlm_jax.errors import UserError

MANIFEST = "stage.json"
_log = logging.getLogger("speechlm.stages")
_WIDE_BYTES = 1024  # of a file's beginning that show whether it is UTF-16


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A stage's output and what it was made from.

    Attributes:
      kind: the stage, e.g. "codes".
      inputs: fingerprint of each input, by name.
      config: the resolved config as JSON data.
      seed: seed of everything random in the stage.
      counts: numbers worth knowing without opening the files (rows, tokens, seconds).
      files: SHA-256 of each file, by its path inside the folder.
      extra: further data for readers (e.g. the tokenizer's identity and frame rate).
    """

    kind: str
    inputs: dict[str, str]
    config: dict[str, Any]
    seed: int
    counts: dict[str, Any]
    files: dict[str, str]
    extra: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the output: of what made it and what it holds."""
        return configs.fingerprint(
            {"kind": self.kind, "inputs": self.inputs, "config": self.config, "files": self.files}
        )


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Opens a temporary file that replaces `path` only if the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def require_new(folder: str | Path) -> None:
    """Raises UserError if a folder that is to be made holds something already."""
    folder = Path(folder)
    try:
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); give another name") from None
    if taken:
        raise UserError(f"{folder}: is not empty; give a new folder")


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Makes a folder to fill, which gets the name `path` only if the block ends without an error.

    Until then it lies beside `path` as `.NAME.PID.tmp`, and is all that a killed process leaves.

    Raises:
      UserError: `path` holds something, before the block or after it.
    """
    path = Path(path)
    require_new(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
        require_new(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a file whole or not at all."""
    with atomic_file(path) as file:
        file.write(data)


def write_json(path: str | Path, data: Any) -> None:
    """Writes JSON, whole or not at all."""
    write_bytes(path, json_to_bytes(data))


def json_to_bytes(data: Any) -> bytes:
    """Returns the bytes that `write_json` writes."""
    return (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode()


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes one JSON object per line, whole or not at all."""
    with atomic_file(path) as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def read_json(path: str | Path) -> Any:
    """Reads a JSON file, local or in a bucket; raises UserError if it is missing or broken."""
    try:
        data = bucket.read_bytes(path) if bucket.is_address(path) else Path(path).read_bytes()
        return json.loads(data.decode("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON in UTF-8 ({error})") from None


def read_lines(path: str | Path) -> Iterator[str]:
    """Yields the lines of a UTF-8 text, plain or .gz, without their ends and without a BOM.

    The text may be in a bucket; it is then held in memory.

    Raises:
      UserError: the file is missing, is a folder, or is not what its name says.
    """
    opened = gzip.open if str(path).lower().endswith(".gz") else open
    source: Any = path
    if bucket.is_address(path):
        source = io.BytesIO(bucket.read_bytes(path))
        opened = gzip.open if opened is gzip.open else _buffered
    try:
        wrap = partial(io.TextIOWrapper, encoding="utf-8", errors="surrogateescape")
        with opened(source, "rb") as file, wrap(file) as text:
            if _is_wide(file.peek(_WIDE_BYTES)[:_WIDE_BYTES]):
                raise UserError(f"{path}: is UTF-16 or UTF-32; `iconv -f utf-16 -t utf-8` turns it")
            for number, line in enumerate(text, 1):
                if not _is_whole(line):
                    raise UserError(
                        f"{path}: is not UTF-8; convert it, e.g. `iconv -t utf-8` (the first fault "
                        f"is in line {number})"
                    )
                yield line.removeprefix("\ufeff").removesuffix("\n")  # also inside joined files
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise UserError(f"{path}: is not a whole gzip file; copy it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _buffered(file: io.BytesIO, _: str) -> io.BufferedReader:
    return io.BufferedReader(file)  # pyright: ignore[reportArgumentType]


def _is_whole(line: str) -> bool:
    """Returns whether a line has no half characters, into which `read_lines` turns other bytes."""
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_wide(head: bytes) -> bool:
    """Returns whether a file begins as UTF-16 or UTF-32: with a BOM, or zeros between letters."""
    return head.startswith((b"\xff\xfe", b"\xfe\xff")) or 4 * head.count(0) > len(head) > 8


def read_jsonl(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yields one JSON object per line, as `read_lines`; UserError names the line that is broken."""
    for _, row in numbered_jsonl(path):
        if isinstance(row, UserError):
            raise row
        yield row


def numbered_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any] | UserError]]:
    """Yields the number and the object of each line; for a broken line, its error as the object."""
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            yield number, _line_to_row(line, f"{path}:{number}")


def _line_to_row(line: str, place: str) -> dict[str, Any] | UserError:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return UserError(f"{place}: is not JSON ({error.msg})")
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of 5,000 digits
        return UserError(f"{place}: cannot be read ({error})")
    return row if isinstance(row, dict) else UserError(f"{place}: is not a JSON object")


def sha256_file(path: str | Path) -> str:
    """Returns the SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(source: str | Path | bytes) -> str:
    """Returns the SHA-256 of a file, or of bytes, in hex."""
    return hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else sha256_file(source)


def write_manifest(
    folder: str | Path,
    kind: str,
    *,
    inputs: dict[str, str],
    config: Any,
    seed: int = 0,
    counts: dict[str, Any] | None = None,
    files: Iterable[str | Path] = (),
    extra: dict[str, Any] | None = None,
) -> Manifest:
    """Hashes `files` (paths inside `folder`) and writes the manifest, which finishes the stage."""
    folder = Path(folder)
    names = [
        str(Path(file).relative_to(folder) if Path(file).is_absolute() else file) for file in files
    ]
    manifest = Manifest(
        kind=kind,
        inputs=dict(inputs),
        config=configs.to_json(config),
        seed=seed,
        counts=dict(counts or {}),
        files={name: sha256_file(folder / name) for name in sorted(names)},
        extra=dict(extra or {}),
    )
    write_json(folder / MANIFEST, dataclasses.asdict(manifest))
    return manifest


def read_manifest(folder: str | Path) -> Manifest:
    """Reads the manifest of a folder, local or in a bucket; raises UserError if it has none."""
    path = bucket.join(folder, MANIFEST)
    unfinished = UserError(
        f"{folder}: is not a finished stage output (no {MANIFEST}); run its stage first"
    )
    if isinstance(path, Path) and not os.path.isfile(path):  # pathlib raises at long names
        raise unfinished
    try:
        data = read_json(path)
    except bucket.NoSuchObject:
        raise unfinished from None
    try:
        return configs.from_json(Manifest, data if isinstance(data, dict) else {})
    except UserError:
        raise UserError(
            f"{path}: is not a stage manifest of this version; run its stage again"
        ) from None


def is_current(
    folder: str | Path, kind: str, *, inputs: dict[str, str], config: Any, seed: int = 0
) -> bool:
    """Returns whether `folder` holds this stage's finished output of these inputs and this config.

    A config that an older version stored is compared as this version would have stored it. If the
    folder holds another output, the log says how it differs: hours of work may be repeated.
    """
    if not (Path(folder) / MANIFEST).is_file():
        return False
    found = read_manifest(folder)
    mine = {"kind": kind, "inputs": inputs, "config": configs.to_json(config), "seed": seed}
    theirs = {"kind": found.kind, "inputs": found.inputs, "seed": found.seed}
    theirs["config"] = configs.upgraded(found.config, config)
    if theirs == mine:
        return True
    say_stale(folder, theirs, mine)
    return False


def say_stale(folder: str | Path, theirs: Any, mine: Any) -> None:
    """Logs that a folder's output is made again, and how it differs from what is wanted."""
    _log.info(
        "%s: is made anew; it had %s", folder, configs.listed(configs.differences(theirs, mine))
    )


def verify(folder: str | Path) -> list[str]:
    """Returns the names of a finished stage's files that are missing or have changed.

    A name that lies outside of the folder, or is not a plain file, counts as missing and is not
    read.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    return [name for name, digest in manifest.files.items() if not _is(folder, name, digest)]


def is_inside(name: str) -> bool:
    """Returns whether a name is a valid path below the folder that it is relative to."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and os.pardir not in path.parts
        and all(map(is_file_name, path.parts))
    )


def is_file_name(name: str) -> bool:
    """Returns whether a file can have this name: no separator, no NUL, 255 bytes at most."""
    try:
        length = len(os.fsencode(name))
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return 0 < length <= 255 and name not in (os.curdir, os.pardir) and not {"/", "\0"} & set(name)


def _is(folder: Path, name: str, digest: str) -> bool:
    try:
        path = folder / name
        return is_inside(name) and path.is_file() and sha256_file(path) == digest
    except (OSError, ValueError):  # not a valid name
        return False
