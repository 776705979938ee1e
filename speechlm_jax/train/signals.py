"""The one owner of SIGTERM and SIGINT while a run trains."""

import logging
import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from speechlm_jax.errors import EXIT_STOPPED

_log = logging.getLogger("speechlm.signals")


class StopSignal:
    """Context in which SIGTERM and SIGINT ask the run to save and stop.

    The first signal sets a flag that the loop reads between two steps; a second SIGINT ends the
    process at once, without saving. On several hosts SIGTERM belongs to JAX's preemption service,
    which agrees on one step for all of them, and SIGINT is passed on to it. Outside the main
    thread, where Python takes no signals, the context only reads the flag.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            mine = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
            self._before = {number: signal.signal(number, self._on_signal) for number in mine}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def should_stop(self, step: int) -> bool:
        """Returns True if the run must save this step and stop; all hosts get the same answer.

        On several hosts it must be called after every step, with the same steps on every host.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.asked

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            os._exit(EXIT_STOPPED)
        self.asked = True
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            _log.warning("%s: saving, then leaving", signal.Signals(number).name)
