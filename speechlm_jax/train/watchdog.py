"""Stack traces of a hang: all threads' stacks when no step has ended for a while."""

import faulthandler
import sys
from typing import TextIO


class Watchdog:
    """Timer that writes all threads' stacks after `seconds` without a call of `alive`; 0: never.

    It repeats, unless `end` is true: then the process ends, with code 1, because other hosts may
    wait for it in a barrier, or it for them.
    """

    def __init__(self, seconds: float, *, file: TextIO | None = None, end: bool = False):
        self._seconds, self._file, self._end = seconds, file, end

    def __enter__(self) -> "Watchdog":
        self.alive()
        return self

    def __exit__(self, *_: object) -> None:
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()

    def alive(self) -> None:
        """Restarts the timer: a step, or another long task, has ended."""
        if self._seconds:
            file = self._file or sys.__stderr__
            if file is not None:  # there is none under pythonw
                faulthandler.dump_traceback_later(
                    self._seconds, repeat=not self._end, file=file, exit=self._end
                )
