"""Caches rows of a bucket, compressed as they are there, on local disk: a ring of files in a limit.

A run goes forward, so the oldest rows are needed least: when the ring is full, its next file is
overwritten. The disk blocks of each file are allocated before anything is written to it.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Hashable, Iterator
from pathlib import Path

from speechlm_jax.errors import UserError

PARTS = 16  # of the limit: the ring's files, and room for what the cache's owner writes beside
RING = 13
_BLOCK = 4096
_LENGTH_BITS = 32


class RowCache:
    """A cache of bytes by key that keeps the newest within a limit; safe to use from threads.

    Attributes:
      folder: folder of this process alone; removed when the process ends, or when the next one
        starts.
      limit: bytes on disk, counted in blocks.
      part: bytes of a file of the ring, and upper limit of one value. What the owner writes in the
        folder itself must stay below two parts.
    """

    def __init__(self, *, limit: int, folder: str | Path = ""):
        """Creates a folder inside `folder` (by default, inside the system's temporary folder).

        Other users may write there too: our files lie in a folder that no other user may enter.

        Raises:
          UserError: the folder cannot be written, something that is not ours has our folder's name,
            or the limit is below one block a part.
        """
        self.limit, self.part = limit, limit // PARTS // _BLOCK * _BLOCK
        if not self.part:
            raise UserError(f"--disk-gb {limit / 1e9:.4g}: too small to read rows from a bucket")
        self.folder, self._lock_file = _own_folder(Path(folder or tempfile.gettempdir()))
        self._files: list[int] = []
        self._keys: list[list[Hashable]] = []
        self._places: dict[Hashable, int] = {}  # file and offset, then length, in one number
        self._next, self._at = 0, self.part  # nothing fits, so the first value makes the first file
        self._lock = threading.Lock()
        self._closed = weakref.finalize(
            self, _remove, self.folder, self._files, self._lock_file, os.getpid()
        )

    def __contains__(self, key: Hashable) -> bool:
        return key in self._places

    def get(self, key: Hashable) -> bytes | None:
        """Returns the value of a key, or None if it is not cached (any more)."""
        with self._lock:
            place = self._places.get(key)
            if place is None:
                return None
            start, length = place >> _LENGTH_BITS, place & (1 << _LENGTH_BITS) - 1
            return os.pread(self._files[start // self.part], length, start % self.part)

    def put(self, key: Hashable, value: bytes) -> None:
        """Stores a value and evicts the oldest. UserError: it is too large, or the disk is full."""
        if len(value) > self.part:
            raise self.too_small(PARTS * (len(value) + _BLOCK))
        with self._lock:
            if self._at + len(value) > self.part:
                self._turn()
            number = self._next - 1
            os.pwrite(self._files[number], value, self._at)
            self._places[key] = number * self.part + self._at << _LENGTH_BITS | len(value)
            self._keys[number].append(key)
            self._at += len(value)

    def drop(self, key: Hashable) -> None:
        """Removes a value."""
        with self._lock:
            self._places.pop(key, None)

    def too_small(self, needed: int) -> UserError:
        """Returns the error of a limit below `needed` bytes; asks for more, as sizes are means."""
        least = needed * 1.25 / 1e9
        return UserError(
            f"--disk-gb {self.limit / 1e9:.4g}: too small for these rows; give at least {least:.3g}"
        )

    def close(self) -> None:
        """Removes all values and the folder."""
        with self._lock:
            self._places.clear()
            self._closed()

    def _turn(self) -> None:
        """Goes on to the next file of the ring: creates it, or evicts the values in it."""
        number = self._next % RING
        if number == len(self._files):
            self._files.append(self._new_file(number))
            self._keys.append([])
        first, last = number * self.part, (number + 1) * self.part
        for key in self._keys[number]:
            # a key may have been stored again, in another file
            if first <= self._places.get(key, -1) >> _LENGTH_BITS < last:
                del self._places[key]
        self._keys[number] = []
        self._next, self._at = number + 1, 0

    def _new_file(self, number: int) -> int:
        path = self.folder / f"ring-{number:02d}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, self.part)
        except OSError as error:
            os.close(descriptor)
            path.unlink()
            raise UserError(
                f"{self.folder}: {error.strerror}; give a smaller --disk-gb than "
                f"{self.limit / 1e9:.4g}, or another data.cache"
            ) from error
        return descriptor


def _own_folder(parent: Path) -> tuple[Path, int]:
    """Returns a new folder of this process and its lock; removes those of ended processes."""
    top = parent / f"speechlm_rows_{os.getuid()}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with _opened_private(top) as private, _opened(".lock", private, os.O_CREAT) as alone:
            fcntl.flock(alone, fcntl.LOCK_EX)  # no other process sees a folder that has no lock yet
            for left in os.listdir(private):
                if left.startswith("rows-"):
                    _remove_if_left(left, private)
            folder = Path(tempfile.mkdtemp(prefix="rows-", dir=top))
            lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        is_link = error.errno in (errno.ELOOP, errno.ENOTDIR)
        reason = "a link, or no folder, is in the way" if is_link else error.strerror
        raise UserError(f"{top}: {reason}; give another data.cache") from error
    return folder, lock


@contextlib.contextmanager
def _opened(name: str | Path, folder: int | None, flags: int) -> Iterator[int]:
    """Opens a file or folder in a context; follows no link and empties nothing."""
    safe = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    access = os.O_RDONLY if flags & os.O_DIRECTORY else os.O_RDWR
    descriptor = os.open(name, access | safe | flags, 0o600, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _opened_private(top: Path) -> Iterator[int]:
    """Opens a folder of this user alone in a context; creates it if needed."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(top, 0o700)
    with _opened(top, None, os.O_DIRECTORY) as descriptor:
        owner = os.fstat(descriptor).st_uid
        if owner != os.getuid():
            raise UserError(
                f"{top}: belongs to user {owner}; remove it, or give another data.cache"
            )
        os.fchmod(descriptor, 0o700)
        yield descriptor


def _remove_if_left(name: str, private: int) -> None:
    """Removes a folder that no living process holds; leaves what is not a folder of ours."""
    with contextlib.suppress(OSError), _opened(name, private, os.O_DIRECTORY) as folder:
        with contextlib.suppress(FileNotFoundError), _opened(".lock", folder, 0) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(name, ignore_errors=True, dir_fd=private)


def _remove(folder: Path, files: list[int], lock: int, pid: int) -> None:
    if os.getpid() != pid:  # a forked child ends; the folder belongs to its parent
        return
    for descriptor in (*files, lock):
        os.close(descriptor)
    files.clear()
    shutil.rmtree(folder, ignore_errors=True)
