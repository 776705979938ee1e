"""Batches made ahead, in a thread, while the device computes."""

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Iterator over `source`, which a background thread reads up to `depth` items ahead.

    An exception of the source is raised in place of its item. Leaving the context ends the thread
    and closes the source if it has a `close`.
    """

    def __init__(self, source: Iterator[T], *, depth: int = 2):
        self._source = source
        self._queue: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(max(1, depth))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, name="prefetch", daemon=True)

    def __enter__(self) -> "Prefetch[T]":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        item, error = self._queue.get()
        if error is not None:
            self._put(None, error)
            raise error
        assert item is not None
        return item

    def _read(self) -> None:
        try:
            while not self._stopped.is_set():
                self._put(next(self._source), None)
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that reads
            self._put(None, error)
        finally:
            close = getattr(self._source, "close", None)
            if close is not None:
                close()

    def _put(self, item: T | None, error: BaseException | None) -> None:
        # a plain put would wait forever for a reader that has left
        while not self._stopped.is_set():
            try:
                return self._queue.put((item, error), timeout=0.1)
            except queue.Full:
                continue
