"""Held-out loss by task during training: the stage's own loss on rows that it never trains on."""

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
    """Rows of a task that an evaluation reads, the same ones each time.

    Attributes:
      rows: number of rows over all hosts; padding is not counted.
      read: returns an iterator over this host's part of each batch; all hosts get the same number
        of batches.
    """

    rows: int
    read: Callable[[], Iterator[dict[str, np.ndarray]]]


def make_loss_sums(loss: Loss, *, num_microbatches: int) -> Callable[..., Sums]:
    """Returns a function from (params, variables, batch) to the sums of losses and of weights.

    It takes one micro batch of a training step at a time, so it needs no more memory than a step.
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
    """Returns an evaluation of each task's held-out rows.

    Its figures for each task are the mean loss per counted id (`<task>`), and the numbers of rows
    and of counted ids in that mean (`<task>/rows`, `<task>/tokens`).

    Args:
      mesh, num_microbatches: as in the training.
    """
    sums = jax.jit(make_loss_sums(loss, num_microbatches=num_microbatches))

    def totals(state: EvalState, rows: HeldOutRows) -> tuple[float, float]:
        total = weight = 0.0
        for batch in rows.read():
            part = sums(state.params, state.variables, to_global(batch, mesh=mesh))
            # float() waits, so that at most one batch lies on the devices
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
