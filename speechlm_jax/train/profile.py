"""Profile of selected steps, for the trace viewer of TensorBoard or XProf."""

from pathlib import Path

import jax

from speechlm_jax.errors import UserError
from speechlm_jax.train.logs import info

PROFILE = "profile"  # in the run's folder


class Profile:
    """Profiler of the steps `first` to `last`, both included; traces nothing if `first` is 0."""

    def __init__(self, folder: Path, first: int, last: int):
        if first < 0 or last < first:
            raise UserError(f"profile_steps: ({first}, {last}) is no range of steps")
        self._folder, self._first, self._last = folder, first, last
        self._running = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Starts or ends the trace; must be called before each step."""
        if self._running and step > self._last:
            self._stop()
        if self._first and step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            info("profile of steps %d to %d: %s", self._first, self._last, self._folder)
