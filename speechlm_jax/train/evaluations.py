"""Evaluations during a run: when each is due, and which ones an earlier session left undone."""

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from speechlm_jax.train.goodput import Goodput
from speechlm_jax.train.logs import ScalarLog, info, logged_at
from speechlm_jax.train.stage import EvalState, Evaluation, Stage
from speechlm_jax.train.state import TrainState


class Evaluations:
    """The evaluations of one run."""

    def __init__(
        self,
        stage: Stage,
        workdir: Path,
        *,
        total_steps: int,
        alive: Callable[[], None],
        goodput: Goodput,
    ):
        """`alive` is called after each part of an evaluation."""
        self._stage, self._workdir, self._total_steps = stage, workdir, total_steps
        self._alive, self._goodput = alive, goodput

    def due(self, step: int) -> list[Evaluation]:
        """Returns the evaluations due at a step; at the last step, all of them."""
        last = step == self._total_steps
        return [one for one in self._stage.evals if last or step % one.every_steps == 0]

    def missed(self, step: int) -> list[Evaluation]:
        """Returns the evaluations due at a saved step whose figures are not in the log.

        The session that saved the step ended before it logged them. All hosts get the same answer.
        """
        due = self.due(step) if step else []
        names = logged_at(self._workdir, step)
        done = np.array([any(x.startswith(f"{one.name}/") for x in names) for one in due], bool)
        if due and jax.process_count() > 1:
            done = multihost_utils.broadcast_one_to_all(done)
        return list(itertools.compress(due, ~done))

    def run(
        self, evaluations: Sequence[Evaluation], state: TrainState, step: int, log: ScalarLog
    ) -> float:
        """Runs evaluations, logs their figures and returns the seconds that they took."""
        began = time.perf_counter()
        seen = EvalState(step, state.averaged, state.variables, self._alive)
        for one in evaluations:
            figures = one.run(seen)
            log.write(step, {f"{one.name}/{key}": x for key, x in figures.items()})
            shown = "  ".join(f"{key} {float(x):.4g}" for key, x in figures.items())
            info("%s %d  %s: %s", self._stage.name, step, one.name, shown)
            self._alive()
        seconds = time.perf_counter() - began
        self._goodput.add("evaluate", seconds)
        return seconds
