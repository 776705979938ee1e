"""Wall time of a run by part: steps, input, compiling, evaluation, checkpoints, the start."""

import contextlib
import time
from collections.abc import Iterator, Mapping

PARTS = ("step", "input", "compile", "evaluate", "checkpoint", "start")


class Goodput:
    """Seconds by part, over all sessions of a run; goodput is the share of the part `step`."""

    def __init__(self, before: Mapping[str, float] | None = None):
        """`before`: value of `seconds` when the run was last saved."""
        self._seconds = {part: dict(before or {}).get(f"{part}_seconds", 0.0) for part in PARTS}

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Adds the time inside the context to a part."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - began)

    def add(self, part: str, seconds: float) -> None:
        """Adds seconds to a part."""
        self._seconds[part] += seconds

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds so far as `<part>_seconds`, to be saved with the run."""
        return {f"{part}_seconds": seconds for part, seconds in self._seconds.items()}

    def shares(self) -> dict[str, float]:
        """Returns each part's share of the time so far, as `goodput/<part>`."""
        total = sum(self._seconds.values())
        return {f"goodput/{part}": x / total for part, x in self._seconds.items() if total}
