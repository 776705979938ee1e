"""Reads inputs ahead of their use, in threads, in order, and within a fixed amount of memory."""

import contextlib
import itertools
import queue
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Input = TypeVar("Input")
Part = TypeVar("Part")

PARTS = 2  # of an input, that wait to be taken
_WAIT_SECONDS = 0.1  # between looks at whether the whole has ended
_END = object()


class ReadAhead(Generic[Input, Part]):
    """A context in which inputs are read by threads before they are taken.

    Threads are enough where libraries do the work: decoders, transforms and files release Python's
    lock. An input has parts (the windows of a recording); of each input, at most `PARTS` wait.
    """

    def __init__(
        self,
        read: Callable[[Input], Iterator[Part]],
        inputs: Iterator[Input],
        *,
        workers: int,
        ahead: int,
    ):
        """Takes the function that reads one input; `ahead` inputs are under way or wait."""
        self._read, self._inputs, self._ahead = read, inputs, ahead
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="read-ahead")
        self._waiting: deque[tuple[Input, queue.Queue[Any]]] = deque()
        self._ended = False

    def __enter__(self) -> "ReadAhead[Input, Part]":
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._threads.shutdown(wait=True, cancel_futures=True)

    @property
    def has_more(self) -> bool:
        """Whether an input is left."""
        self._fill()
        return bool(self._waiting)

    def take(self) -> tuple[Input, Iterator[Part]]:
        """Returns the next input and its parts, which are to be taken before the next input.

        The parts raise what reading raises.
        """
        self._fill()
        one, parts = self._waiting.popleft()
        return one, _drain(parts)

    def _fill(self) -> None:
        for one in itertools.islice(self._inputs, max(0, self._ahead - len(self._waiting))):
            parts: queue.Queue[Any] = queue.Queue(PARTS)
            self._waiting.append((one, parts))
            self._threads.submit(self._run, one, parts)

    def _run(self, one: Input, parts: "queue.Queue[Any]") -> None:
        try:
            for part in self._read(one):
                self._put(parts, part)
            self._put(parts, _END)
        except _Ended:
            return
        except BaseException as error:  # raised where the parts are taken
            with contextlib.suppress(_Ended):
                self._put(parts, _Raised(error))

    def _put(self, parts: "queue.Queue[Any]", part: Any) -> None:
        while not self._ended:
            try:
                return parts.put(part, timeout=_WAIT_SECONDS)
            except queue.Full:
                continue
        raise _Ended


class _Ended(Exception):
    """Raised in a thread whose parts nobody will take."""


class _Raised:
    """An error on its way to another thread."""

    def __init__(self, error: BaseException):
        self.error = error


def _drain(parts: "queue.Queue[Any]") -> Iterator[Any]:
    while (part := parts.get()) is not _END:
        if isinstance(part, _Raised):
            raise part.error
        yield part
