"""Reads from buckets by address (gs://...): files, lists of files, many byte ranges at once.

Everything that fsspec supports can be read, gs:// through gcsfs. epath, which is built on fsspec,
would import TensorFlow for gs:// wherever it is installed.
"""

import functools
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import fsspec

from speechlm_jax.errors import UserError

T = TypeVar("T")

DISK_GB = 20.0  # default disk space of a host for rows in a bucket
# Waits between our tries; gcsfs itself tries each request six times within half a minute.
PATIENCE_SECONDS = (1.0, 4.0, 16.0)
_TRANSIENT = {"408", "429", "500", "502", "503", "504"}


class NoSuchObject(UserError):
    """Raised if nothing is at an address."""


class Range(NamedTuple):
    """Bytes `start` to `end` of a file in a bucket; to the file's end without an `end`."""

    address: str
    start: int = 0
    end: int | None = None


def is_address(place: str | Path) -> bool:
    """Returns whether a place is in a bucket; all others are local paths."""
    return "://" in str(place)


def join(place: str | Path, name: str) -> str | Path:
    """Returns the path or address of `name` in a folder."""
    return f"{str(place).rstrip('/')}/{name}" if is_address(place) else Path(place) / name


def parent(place: str | Path) -> str | Path:
    """Returns the folder, or the address, that holds a file."""
    return str(place).rpartition("/")[0] if is_address(place) else Path(place).parent


def require_folder(place: str | Path, what: str) -> None:
    """Raises UserError if a place that must be a local folder is an address."""
    # pathlib has turned two slashes into one if the option is a path
    address = re.sub(r"^(gs|s3):/(?!/)", r"\1://", str(place))
    if is_address(address):
        raise UserError(
            f"{what} {address}: must be a folder; mount the bucket (only rows are read by address)"
        )


def read_bytes(address: str | Path) -> bytes:
    """Returns the bytes of a small file.

    Raises:
      NoSuchObject: the file does not exist.
      UserError: the file cannot be read.
    """
    return read_ranges([Range(str(address))])[0]


def file_sizes(address: str) -> dict[str, int]:
    """Returns the bytes of each file in a folder of a bucket, by name; {} without the folder."""

    def listed(system: Any) -> list[dict[str, Any]]:
        system.invalidate_cache()
        return system.ls(address, detail=True)

    try:
        found = _patiently(address, listed)
    except NoSuchObject:
        return {}
    return {file["name"].rpartition("/")[2]: file["size"] for file in found}


def find_files(address: str) -> Iterator[tuple[str, int]]:
    """Yields the address and bytes of each file in and below a folder, in order of their names.

    The address of a file gives that file alone; of what does not exist, nothing.
    """
    protocol, _, path = address.partition("://")

    def found(system: Any) -> dict[str, dict[str, Any]]:
        system.invalidate_cache()
        return system.find(address, detail=True)

    for name, file in sorted(_patiently(address, found).items()):
        yield f"{protocol}://{name if path.startswith('/') else name.lstrip('/')}", file["size"]


def open_file(address: str) -> Any:
    """Returns an open file, to be read on from its beginning; raises as `read_bytes`."""
    return _patiently(address, lambda system: system.open(address, "rb"))


def read_ranges(ranges: Sequence[Range]) -> list[bytes]:
    """Reads many ranges of files in one bucket at once; requests those that fail again.

    Raises:
      NoSuchObject: a file does not exist.
      UserError: a range cannot be read: no permission, no such bucket, a file cut short.
    """
    found: dict[int, bytes] = {}

    def ask(system: Any) -> None:
        left = [i for i in range(len(ranges)) if i not in found]
        answers = system.cat_ranges(
            [ranges[i].address for i in left],
            [ranges[i].start or None for i in left],
            [ranges[i].end for i in left],
            on_error="return",
            **({"batch_size": len(left)} if system.async_impl else {}),
        )
        failed = None
        for i, answer in zip(left, answers, strict=True):
            _, start, end = ranges[i]
            if isinstance(answer, Exception):
                failed = _Failed(ranges[i].address, answer)
            elif end is not None and len(answer) != end - start:
                short = OSError(f"{len(answer)} bytes at {start}, not {end - start}: cut short")
                failed = _Failed(ranges[i].address, short)
            else:
                found[i] = answer
        if failed is not None:
            raise failed

    if ranges:
        _patiently(ranges[0].address, ask)
    return [found[i] for i in range(len(ranges))]


class _Failed(Exception):
    """An error, and the address at which it happened."""

    def __init__(self, address: str, error: Exception):
        self.address, self.error = address, error


def _patiently(address: str, call: Callable[[Any], T]) -> T:
    """Calls `call` with the address's file system; again after each wait while that may help."""
    for wait in (*PATIENCE_SECONDS, None):
        try:
            return call(_file_system(address.partition("://")[0]))
        except UserError:
            raise
        except Exception as error:
            cause = error.error if isinstance(error, _Failed) else error
            where = error.address if isinstance(error, _Failed) else address
            final = _final(where, cause)
            if final is None and wait is None:
                line = f"{where}: cannot be read, tried again and again ({_line(cause)})"
                final = UserError(line)
            if final is not None:
                raise final from cause
            assert wait is not None
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


@functools.lru_cache
def _file_system(protocol: str) -> Any:
    # Set before gcsfs is imported, which would ask for the kind of bucket by gRPC, for up to a
    # minute where gRPC is blocked; reading by HTTP does not need to know it.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # One file system for all threads: fsspec would make one for each.
    try:
        return fsspec.filesystem(protocol, skip_instance_cache=True)
    except ImportError as error:
        hint = "pip install -e '.[gcs]'" if protocol in ("gs", "gcs") else str(error)
        raise UserError(f"{protocol}://: cannot be read here; {hint}") from None
    except ValueError as error:
        raise UserError(f"{protocol}://: {_line(error)}") from None


def _final(address: str, error: Exception) -> UserError | None:
    """Returns the error for the user, or None if another try may help; raises an error of ours."""
    home = type(error).__module__.partition(".")[0]
    code = str(getattr(error, "code", "") or getattr(error, "status", ""))
    if isinstance(error, FileNotFoundError) or code == "404":
        return NoSuchObject(f"{address}: no such object")
    refused = isinstance(error, PermissionError) or code in ("401", "403")
    if refused or str(error).startswith("Forbidden") or type(error).__module__ == _GOOGLE_AUTH:
        return UserError(
            f"{address}: not allowed ({_line(error)}); let this host's account read the bucket"
        )
    if code in _TRANSIENT or home == "aiohttp" or isinstance(error, (OSError, TimeoutError)):
        return None
    if home in ("gcsfs", "google", "s3fs", "botocore") or str(error).startswith("Bad Request"):
        return UserError(f"{address}: cannot be read ({_line(error)})")
    raise error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


_GOOGLE_AUTH = "google.auth.exceptions"
