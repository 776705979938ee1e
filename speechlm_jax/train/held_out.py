"""Held-out loss by task while training: the stage's own loss on rows that it never trains on."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from speechlm_jax.arrays import Array, Float, PyTree
from speechlm_jax.sharding import to_global
from speechlm_jax.train.stage import EvalState, Evaluation, LossOutput
from speechlm_jax.train.step import split_rows

Loss = Callable[[PyTree, PyTree, Mapping[str, Array], Array], LossOutput]
Sums = tuple[Float[Array, ""], Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class HeldOutRows:
    """The rows of a task that an evaluation reads, the same ones each time.

    Attributes:
      rows: how many, over all hosts; padding is not counted.
      read: this host's part of each batch; all hosts get the same number of batches.
    """

    rows: int
    read: Callable[[], Iterator[dict[str, np.ndarray]]]


def make_loss_sums(loss: Loss, *, num_microbatches: int) -> Callable[..., Sums]:
    """(params, variables, batch) -> sums of losses and of weights, one micro batch at a time.

    The micro batches are those of a training step, so it needs no more memory than one.
    """

    def sums(params: PyTree, variables: PyTree, batch: Mapping[str, Array]) -> Sums:
        def one(rows: Mapping[str, Array]) -> Sums:
            output = loss(params, variables, rows, jax.random.key(0))
            return output.loss_sum.astype(jnp.float32), output.weight_sum.astype(jnp.float32)

        if num_microbatches == 1:
            return one(batch)
        parts = {name: split_rows(rows, num_microbatches) for name, rows in batch.items()}
        losses, weights = jax.lax.map(one, parts)
        return losses.sum(), weights.sum()

    return sums


def held_out(
    loss: Loss,
    tasks: Mapping[str, HeldOutRows],
    *,
    every_steps: int,
    mesh: Mesh,
    num_microbatches: int = 1,
) -> Evaluation:
    """An evaluation of each task's held-out rows.

    Its figures, by task: the mean loss a counted id (`<task>`), and of how many rows and counted
    ids it is the mean (`<task>/rows`, `<task>/tokens`).

    Args:
      mesh, num_microbatches: those of the training.
    """
    sums = jax.jit(make_loss_sums(loss, num_microbatches=num_microbatches))

    def totals(state: EvalState, rows: HeldOutRows) -> tuple[float, float]:
        total = weight = 0.0
        for batch in rows.read():
            part = sums(state.params, state.variables, to_global(batch, mesh=mesh))
            # waits, so that no more than one batch lies on the devices
            total, weight = total + float(part[0]), weight + float(part[1])
            state.alive()
        return total, weight

    def run(state: EvalState) -> dict[str, float]:
        figures: dict[str, float] = {}
        for task, rows in tasks.items():
            total, weight = totals(state, rows)
            figures[task] = total / max(weight, 1.0)
            figures |= {f"{task}/rows": float(rows.rows), f"{task}/tokens": weight}
        return figures

    return Evaluation("held_out", every_steps, run)
