"""Reads rows of a bucket by number: fetches them ahead of use and decodes them with array_record.

A host reads the bytes of its own rows (about 20 KB each of 8,192 ids) with one request per row, so
its row rate is its request rate. Once per file it also reads the offsets (8 bytes a row) and the
tail (array_record's own index: 64 KiB and a few bytes a row). Offsets and index stay in memory:
16 bytes per row of the corpus.
"""

import bisect
import contextlib
import hashlib
import itertools
import os
import queue
import threading
import weakref
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from speechlm_jax import bucket
from speechlm_jax.bucket import DISK_GB, Range
from speechlm_jax.data.row_cache import PARTS, RowCache
from speechlm_jax.data.row_files import RowFile, allow_open_files
from speechlm_jax.errors import UserError

ROWS_AHEAD = 1024  # at most; fewer if they would take more than a quarter of the disk limit
_THREADS, _GROUP = 4, 64  # fetching threads, and concurrent requests of each
THREAD = "speechlm row fetcher"  # name of the threads
_PADDING = 1 << 16  # bytes of padding in a tail, at most
_Key = tuple[int, int]  # number of a file in the order of `RowFetcher.add`, number of a row in it


class RowFetcher:
    """The cache on disk and the threads that fill it, shared by all tasks of a process.

    Both are created when the first file of a bucket is added, so local rows never need them. They
    end with `close`, at the end of a `with` block, or when the fetcher is garbage-collected.
    """

    def __init__(self, *, disk_gb: float = DISK_GB, folder: str | Path = ""):
        """Creates neither the cache nor the threads yet.

        Args:
          disk_gb: disk space for this process, in gigabytes (10^9 bytes).
          folder: local folder for the cache; the system's temporary folder by default.
        """
        self._limit, self._folder = int(disk_gb * 1e9), folder
        self._cache: RowCache | None = None
        self._files: list[_BucketFile] = []
        self._queue: queue.SimpleQueue[_Key | None] = queue.SimpleQueue()
        self._pending: dict[_Key, Future[bytes]] = {}
        self._lock, self._opening, self._decoding = (threading.Lock() for _ in range(3))
        self._closed = False
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "RowFetcher":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def cache(self) -> RowCache:
        """The cache on disk; available once a file was added."""
        assert self._cache is not None
        return self._cache

    def close(self) -> None:
        """Ends the threads and removes the cache; callers that still wait get CancelledError."""
        with self._lock:
            self._closed, waiting = True, [*self._pending.values()]
            self._pending.clear()
        for future in waiting:
            future.cancel()
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        with self._decoding:
            if self._cache is not None:
                self._cache.close()

    def add(self, file: "_BucketFile") -> int:
        """Adds a file of rows; returns its number, the first part of its keys.

        Raises:
          UserError: this is the first file, and the cache cannot be created.
        """
        with self._lock:
            if self._closed:
                raise CancelledError
            if self._cache is None:
                self._start()
            number = len(self._files)
            file.stand_in = self.cache.folder / f"{number}.rows"
            self._files.append(file)
            allow_open_files(len(self._files))
            return number

    def fetch(self, key: _Key) -> Future[bytes] | None:
        """Requests a row; returns a future of its bytes, or None if the cache has them."""
        with self._lock:
            if self._closed:
                raise CancelledError
            if key in self.cache:
                return None
            if key not in self._pending:
                self._pending[key] = Future()
                self._queue.put(key)
            return self._pending[key]

    def has(self, key: _Key) -> bool:
        """Returns whether a row is cached or requested."""
        with self._lock:
            return key in self._pending or key in self.cache

    def record(self, key: _Key) -> bytes:
        """Returns a row's record; waits until the row is fetched.

        Raises:
          UserError: the row cannot be fetched, or is damaged in the bucket.
        """
        data = self._bytes(key)
        try:
            return self._decode(key, data)
        except RuntimeError:
            self.cache.drop(key)  # the local disk may be at fault
        try:
            return self._decode(key, self._bytes(key))
        except RuntimeError as error:
            number, row = key
            line = str(error).partition("\n")[0]
            raise UserError(
                f"{self._files[number].address}: row {row} is damaged ({line}); copy the file again"
            ) from error

    def _bytes(self, key: _Key) -> bytes:
        data = self.cache.get(key)
        while data is None:
            waiting = self.fetch(key)
            data = self.cache.get(key) if waiting is None else waiting.result()
        return data

    def _decode(self, key: _Key, data: bytes) -> bytes:
        number, row = key
        with self._decoding:  # so that at most one row at a time is on disk twice
            if self._closed:
                raise CancelledError
            return self._files[number].decode(row, data)

    def _start(self) -> None:
        """Creates the cache, and threads that wait for requests."""
        bucket.require_folder(self._folder, "data.cache")
        self._cache = RowCache(limit=self._limit, folder=self._folder)
        work = (weakref.ref(self), self._queue)
        self._threads = [
            threading.Thread(target=RowFetcher._work, args=work, name=THREAD, daemon=True)
            for _ in range(_THREADS)
        ]
        for thread in self._threads:
            thread.start()
        weakref.finalize(self, self._queue.put, None)

    @staticmethod
    def _work(fetcher: "weakref.ref[RowFetcher]", asked: "queue.SimpleQueue[_Key | None]") -> None:
        """Fetches requested rows, as many at once as are waiting, up to `_GROUP`.

        A thread refers to the fetcher only while it fetches, so that an unused fetcher can end.
        """
        while (key := asked.get()) is not None:
            keys, last = [key], False
            while len(keys) < _GROUP and not last:
                try:
                    following = asked.get_nowait()
                except queue.Empty:
                    break
                if last := following is None:
                    asked.put(None)
                else:
                    keys.append(following)
            if (ours := fetcher()) is not None:
                ours._fetch(keys)
            del ours
        asked.put(None)  # for the next thread

    def _fetch(self, keys: list[_Key]) -> None:
        values: list[bytes] = []
        error = None
        try:
            self._open(sorted({number for number, _ in keys}))
            values = bucket.read_ranges([self._files[number].range(row) for number, row in keys])
            for key, value in zip(keys, values, strict=True):
                self.cache.put(key, value)
        except BaseException as caught:  # raised by the caller that waits for the row
            error = caught
        with self._lock:
            waiting = [self._pending.pop(key, None) for key in keys]
        for i, future in enumerate(waiting):
            if future is None:  # the fetcher was closed meanwhile
                continue
            if error is None:
                future.set_result(values[i])
            else:
                future.set_exception(error)

    def _open(self, numbers: list[int]) -> None:
        """Fetches the offsets and tails of files that are not open yet, and opens the files."""
        if all(self._files[number].is_open for number in numbers):
            return
        with self._opening:
            files = [self._files[n] for n in numbers if not self._files[n].is_open]
            offsets = bucket.read_ranges([Range(file.offsets_address) for file in files])
            for file, data in zip(files, offsets, strict=True):
                file.take_offsets(data)
            for file, tail in zip(
                files, bucket.read_ranges([file.tail for file in files]), strict=True
            ):
                if len(tail) > self.cache.part:
                    raise self.cache.too_small(PARTS * (len(tail) + _PADDING))
                file.open(tail)


class _BucketFile:
    """A file in a bucket, and a local stand-in of its size that is empty except while decoding.

    When array_record opens a file, it reads the index at the end; for a row it then reads the bytes
    of that row alone. So the stand-in holds the tail while it is opened, and later each row's bytes
    at their offset while they are decoded. Bytes that are missing fail the hash of their chunk.
    """

    def __init__(self, folder: str, file: RowFile):
        self.address = str(bucket.join(folder, file.name))
        self.offsets_address = str(bucket.join(folder, file.offsets_name))
        self.file = file
        self.offsets = np.zeros(0, "<u8")
        self.stand_in = Path()  # set by `RowFetcher.add`
        self._reader: ArrayRecordReader | None = None

    @property
    def is_open(self) -> bool:
        return self._reader is not None

    @property
    def tail(self) -> Range:
        """Byte range of array_record's index: everything after the last row."""
        return Range(self.address, int(self.offsets[-1]), self.file.size_bytes)

    def range(self, row: int) -> Range:
        """Returns the byte range of a row."""
        return Range(self.address, int(self.offsets[row]), int(self.offsets[row + 1]))

    def take_offsets(self, data: bytes) -> None:
        """Sets the offsets; raises UserError unless they are those that the manifest names."""
        if hashlib.sha256(data).hexdigest() != self.file.offsets:
            raise UserError(f"{self.offsets_address}: changed since prepared; copy it again")
        offsets = np.frombuffer(data[: len(data) // 8 * 8], "<u8")
        if len(data) != 8 * (self.file.rows + 1) or not (
            np.all(offsets[:-1] <= offsets[1:]) and offsets[-1] <= self.file.size_bytes
        ):
            raise UserError(f"{self.offsets_address}: are no offsets of its file; prepare again")
        self.offsets = offsets

    def open(self, tail: bytes) -> None:
        """Creates the stand-in and opens it with array_record, which reads the index."""
        with open(self.stand_in, "wb") as file:
            file.truncate(self.file.size_bytes)
            os.pwrite(file.fileno(), tail, int(self.offsets[-1]))
            reader = ArrayRecordReader(
                str(self.stand_in), "readahead_buffer_size:0", file_reader_buffer_size=32_768
            )
            self._empty(file.fileno())
        if not reader.ok() or reader.num_records() != self.file.rows:
            raise UserError(f"{self.address}: its index is damaged; copy the file again")
        self._reader = reader

    def decode(self, row: int, data: bytes) -> bytes:
        """Returns the record in a row's bytes; raises RuntimeError if the bytes are damaged."""
        assert self._reader is not None
        descriptor = os.open(self.stand_in, os.O_WRONLY)
        try:
            os.pwrite(descriptor, data, int(self.offsets[row]))
            return self._reader.read([row])[0]
        finally:
            self._empty(descriptor)
            os.close(descriptor)

    def _empty(self, descriptor: int) -> None:
        os.ftruncate(descriptor, 0)
        os.ftruncate(descriptor, self.file.size_bytes)


class BucketRows:
    """The records of one folder of row files in a bucket, by number."""

    def __init__(self, folder: str, files: Sequence[RowFile], fetcher: RowFetcher):
        """Adds the files without opening them; raises UserError if one lacks offsets."""
        self._fetcher, self._starts = fetcher, [0, *itertools.accumulate(f.rows for f in files)]
        if lacking := [file.name for file in files if file.rows and not file.offsets]:
            raise UserError(
                f"{folder}: {lacking[0]} has no offsets, so that its rows cannot be read one by "
                "one; give the command that prepared it again (it adds them), and copy the folder"
            )
        self._numbers = [fetcher.add(_BucketFile(folder, file)) for file in files]
        size = sum(file.size_bytes for file in files)
        self._row_bytes = max(size // max(self._starts[-1], 1), 1)

    def __getitem__(self, number: int) -> bytes:
        return self._fetcher.record(self._key(number))

    def expect(self, numbers: Iterable[int]) -> None:
        """Requests rows that will be read, in this order."""
        for number in numbers:
            self._fetcher.fetch(self._key(number))

    def is_at_hand(self, number: int) -> bool:
        """Returns whether a row is cached or requested, so that reading it sends no new request."""
        return self._fetcher.has(self._key(number))

    def batches_ahead(self, rows: int) -> int:
        """Returns how many batches of `rows` rows may be requested ahead.

        They fit in a quarter of the disk limit and hold at most ROWS_AHEAD rows; at least 2.

        Raises:
          UserError: two batches do not fit.
        """
        cache = self._fetcher.cache
        room = cache.limit // 4 // self._row_bytes
        if room < 2 * rows:
            raise cache.too_small(max(8 * rows * (self._row_bytes + 1), 2 * PARTS * _PADDING))
        return max(min(room, ROWS_AHEAD) // rows, 2)

    def _key(self, number: int) -> _Key:
        at = bisect.bisect_right(self._starts, number) - 1
        return self._numbers[at], number - self._starts[at]
