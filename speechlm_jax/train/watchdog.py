"""A hang shows its stacks: what every thread was doing when no step had ended for a while."""

import faulthandler
import sys
from typing import TextIO


class Watchdog:
    """Writes all threads' stacks whenever `seconds` pass without `alive`; 0 never does.

    With `end` the process ends then, with code 1: others may wait for it in a barrier, or it for
    them.
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
        """Says that a step, or what else takes long, has ended."""
        if self._seconds:
            file = self._file or sys.__stderr__
            if file is not None:  # there is none under pythonw
                faulthandler.dump_traceback_later(
                    self._seconds, repeat=not self._end, file=file, exit=self._end
                )
