"""Held-out loss by task while training: the stage's own loss on rows that it never trains on."""

from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from speechlm_jax.arrays import Array, PyTree
from speechlm_jax.train.stage import EvalState, Evaluation, LossOutput

Loss = Callable[[PyTree, PyTree, Mapping[str, Array], Array], LossOutput]


def held_out(
    loss: Loss,
    batches: Mapping[str, Callable[[], Iterator[dict[str, np.ndarray]]]],
    *,
    every_steps: int,
) -> Evaluation:
    """An evaluation that gives the mean loss a counted id of each task's held-out rows."""

    @jax.jit
    def sums(params: PyTree, variables: PyTree, batch: dict[str, Array]) -> tuple[Array, Array]:
        output = loss(params, variables, batch, jax.random.key(0))
        return output.loss_sum, output.weight_sum

    def run(state: EvalState) -> dict[str, float]:
        figures = {}
        for task, read in batches.items():
            parts = [sums(state.params, state.variables, batch) for batch in read()]
            total, weight = (sum(float(part[i]) for part in parts) for i in (0, 1))
            figures[task] = total / max(weight, 1.0)
        return figures

    return Evaluation("held_out", every_steps, run)
