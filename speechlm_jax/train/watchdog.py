"""A hang shows its stacks: what every thread was doing when no step had ended for a while."""

import faulthandler
import sys
from typing import TextIO


class Watchdog:
    """Writes all threads' stacks whenever `seconds` pass without `alive`; 0 never does."""

    def __init__(self, seconds: float, *, file: TextIO | None = None):
        self._seconds, self._file = seconds, file

    def __enter__(self) -> "Watchdog":
        self.alive()
        return self

    def __exit__(self, *_: object) -> None:
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()

    def alive(self) -> None:
        """Says that a step has ended."""
        if self._seconds:
            file = self._file or sys.__stderr__
            if file is not None:  # there is none under pythonw
                faulthandler.dump_traceback_later(self._seconds, repeat=True, file=file)
