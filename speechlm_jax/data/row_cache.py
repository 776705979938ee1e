"""Rows of a bucket as they lie there (compressed), on local disk: a ring of files within a limit.

A run goes forward, so what was written first is done with first: where the ring is full, the next
file of it is written over. Each file has its blocks before anything is written to it.
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

PARTS = 16  # of the limit: the ring's files, and room for what its owner writes beside them
RING = 13
_BLOCK = 4096
_LENGTH_BITS = 32


class RowCache:
    """Bytes by key, the newest of them within a limit; safe to use from threads.

    Attributes:
      folder: of this process alone; it goes with the process, or with the next one's start.
      limit: bytes on disk, as blocks are counted.
      part: bytes of a file of the ring, and most of one value. What its owner writes in the folder
        itself must stay below two parts.
    """

    def __init__(self, *, limit: int, folder: str | Path = ""):
        """Makes a folder inside `folder` (by default, inside the system's temporary one).

        Others may write there too: what is ours lies in a folder that nobody else may enter.

        Raises:
          UserError: the folder cannot be written, what has our folder's name is not ours, or the
            limit is next to nothing.
        """
        self.limit, self.part = limit, limit // PARTS // _BLOCK * _BLOCK
        if not self.part:
            raise UserError(f"--disk-gb {limit / 1e9:.4g}: too small to read rows from a bucket")
        self.folder, self._lock_file = _own_folder(Path(folder or tempfile.gettempdir()))
        self._files: list[int] = []
        self._keys: list[list[Hashable]] = []
        self._places: dict[Hashable, int] = {}  # file and offset, then length, in one number
        self._next, self._at = 0, self.part  # nothing fits: the first value makes the first file
        self._lock = threading.Lock()
        self._closed = weakref.finalize(
            self, _remove, self.folder, self._files, self._lock_file, os.getpid()
        )

    def __contains__(self, key: Hashable) -> bool:
        return key in self._places

    def get(self, key: Hashable) -> bytes | None:
        """What was kept under a key, or None if it is not there (any more)."""
        with self._lock:
            place = self._places.get(key)
            if place is None:
                return None
            start, length = place >> _LENGTH_BITS, place & (1 << _LENGTH_BITS) - 1
            return os.pread(self._files[start // self.part], length, start % self.part)

    def put(self, key: Hashable, value: bytes) -> None:
        """Keeps a value; the oldest make room. UserError: too large, or the disk is full."""
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
        """Forgets a value."""
        with self._lock:
            self._places.pop(key, None)

    def too_small(self, needed: int) -> UserError:
        """The error of a limit that must be so many bytes; asks for more, as sizes are means."""
        least = needed * 1.25 / 1e9
        return UserError(
            f"--disk-gb {self.limit / 1e9:.4g}: too small for these rows; give at least {least:.3g}"
        )

    def close(self) -> None:
        """Forgets everything and removes the folder."""
        with self._lock:
            self._places.clear()
            self._closed()

    def _turn(self) -> None:
        """Goes on to the next file of the ring, which is made, or forgotten."""
        number = self._next % RING
        if number == len(self._files):
            self._files.append(self._new_file(number))
            self._keys.append([])
        first, last = number * self.part, (number + 1) * self.part
        for key in self._keys[number]:
            # a key may have come anew, to another file
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
    """A folder of this process; those whose process is gone are removed."""
    top = parent / f"speechlm_rows_{os.getuid()}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with _opened_private(top) as private, _opened(".lock", private, os.O_CREAT) as alone:
            fcntl.flock(alone, fcntl.LOCK_EX)  # nobody sees a folder that has no lock yet
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
    """A file or folder, open for a while; no link is followed, and nothing is emptied."""
    safe = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    access = os.O_RDONLY if flags & os.O_DIRECTORY else os.O_RDWR
    descriptor = os.open(name, access | safe | flags, 0o600, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _opened_private(top: Path) -> Iterator[int]:
    """A folder, made if need be, that is this user's and nobody else's."""
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
    """Removes a folder that no living process holds; what is no folder of ours stays."""
    with contextlib.suppress(OSError), _opened(name, private, os.O_DIRECTORY) as folder:
        with contextlib.suppress(FileNotFoundError), _opened(".lock", folder, 0) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(name, ignore_errors=True, dir_fd=private)


def _remove(folder: Path, files: list[int], lock: int, pid: int) -> None:
    if os.getpid() != pid:  # a fork ends; the folder is its parent's
        return
    for descriptor in (*files, lock):
        os.close(descriptor)
    files.clear()
    shutil.rmtree(folder, ignore_errors=True)
