"""Figures between two log lines: kept on the device, fetched once, divided once."""

import itertools
import logging
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from speechlm_jax.errors import UserError
from speechlm_jax.train.logs import console_line, info
from speechlm_jax.train.stage import Metrics
from speechlm_jax.train.work import NOTHING, FlopCount, rates

_log = logging.getLogger("speechlm.train")


class Interval:
    """Metrics since the last log line, kept on the device until the line is written."""

    def __init__(
        self, total_steps: int, name: str, *, max_skipped: int, chips: int = 1, kind: str = ""
    ):
        """Starts the clock; `max_skipped` skipped updates in a row end the run.

        Args:
          chips, kind: number and kind of the devices that share the work.
        """
        self._total_steps, self._name, self._max_skipped = total_steps, name, max_skipped
        self._chips, self._kind = chips, kind
        self._skipped_in_a_row = 0
        self._restart()

    def _restart(self) -> None:
        self._pending: list[Metrics] = []
        self._rows, self._work = 0, NOTHING
        self._laps: list[float] = []
        self._since = self._lap_since = time.perf_counter()

    def add(self, metrics: Metrics, rows: int, work: FlopCount = NOTHING) -> None:
        """Adds one step's metrics; does not wait for the device."""
        self._pending.append(metrics)
        self._rows += rows
        self._work += work

    def lap(self) -> None:
        """Marks the end of a step."""
        now = time.perf_counter()
        self._laps.append(now - self._lap_since)
        self._lap_since = now

    def leave_out(self, seconds: float) -> None:
        """Excludes time spent on something else, such as an evaluation, from the rates."""
        self._since += seconds
        self._lap_since += seconds

    def close(self, step: int) -> dict[str, float]:
        """Waits for the device, returns the interval's figures and starts the next interval.

        Raises:
          UserError: too many updates in a row were skipped.
        """
        fetched: list[Mapping[str, tuple[Any, Any]]] = jax.device_get(self._pending)
        seconds = max(time.perf_counter() - self._since, 1e-9)
        figures = ratios(fetched)
        figures["rows_per_second"] = self._rows / seconds
        figures["seconds_per_step"] = seconds / len(fetched)
        for percent in (50, 95) if self._laps else ():
            figures[f"step_seconds_p{percent}"] = float(np.percentile(self._laps, percent))
        if self._work.tokens:
            figures |= rates(self._work, seconds, chips=self._chips, device_kind=self._kind)
        left = (self._total_steps - step) * figures["seconds_per_step"]
        info(
            "%s",
            console_line(self._name, step, self._total_steps, figures, seconds_left=left),
        )
        self._count_skipped(step, [bool(metrics["skipped_steps"][0]) for metrics in fetched])
        self._restart()
        return figures

    def _count_skipped(self, step: int, skipped: list[bool]) -> None:
        if any(skipped):
            _log.warning(
                "%s %d: %d updates skipped (no finite gradient, or a spike)",
                self._name,
                step,
                sum(skipped),
            )
        for one in skipped:
            self._skipped_in_a_row = self._skipped_in_a_row + 1 if one else 0
            if self._skipped_in_a_row >= self._max_skipped:
                raise UserError(
                    f"{self._name}: {self._skipped_in_a_row} updates in a row up to step {step} "
                    "were skipped (no finite gradient, or a spike); lower optimizer.peak or look "
                    "for bad values in the data"
                )


def ratios(steps: list[Mapping[str, tuple[Any, Any]]]) -> dict[str, float]:
    """Returns sums of numerators over sums of denominators by name, without those of weight 0."""
    names = dict.fromkeys(itertools.chain.from_iterable(steps))
    figures: dict[str, float] = {}
    for name in names:
        pairs = [metrics[name] for metrics in steps if name in metrics]
        above, below = (sum(float(pair[i]) for pair in pairs) for i in (0, 1))
        if below:
            figures[name] = above / below
    return figures
