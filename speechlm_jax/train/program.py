"""One training step on one mesh: the loop runs it, the bench times it, the planner compiles it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from speechlm_jax.sharding import batch_sharding
from speechlm_jax.train.held_out import make_loss_sums
from speechlm_jax.train.optimizer import Optimizer, OptimizerConfig, make_optimizer
from speechlm_jax.train.stage import Stage
from speechlm_jax.train.state import StateConfig, StateLayout, TrainState, init_state, make_layout
from speechlm_jax.train.step import TrainStep, make_train_step
from speechlm_jax.train.trainable import part


@dataclasses.dataclass(frozen=True)
class Program:
    """A stage's step and the layout of its state; the mesh's devices need not exist."""

    stage: Stage
    mesh: Mesh
    optimizer: Optimizer
    layout: StateLayout
    step: TrainStep
    num_microbatches: int = 1

    def init(self, seed: int) -> TrainState:
        """Draws the state before the first step from a seed; each device draws its own part."""
        return init_state(self.stage, self.optimizer, self.layout, seed=seed)

    def lower(self, batch: Mapping[str, Any]) -> Any:
        """Traces the step for a batch of all hosts with these shapes; computes nothing."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=everywhere)
        step: Any = self.step
        with jax.set_mesh(self.mesh):
            return step.lower(self.layout.abstract, self._placed(batch), key)

    def lower_evaluation(self, batch: Mapping[str, Any]) -> Any:
        """Traces the held-out loss of a batch beside the whole state; computes nothing."""
        sums = make_loss_sums(self.stage.loss, num_microbatches=self.num_microbatches)

        def evaluate(state: TrainState, rows: Mapping[str, Any]) -> Any:
            return sums(state.averaged, state.variables, rows)

        with jax.set_mesh(self.mesh):
            # parts of the state that it does not read occupy the devices all the same
            jitted = jax.jit(evaluate, keep_unused=True)
            return jitted.lower(self.layout.abstract, self._placed(batch))

    def _placed(self, batch: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(self.mesh))
            for name, x in batch.items()
        }


def make_program(
    stage: Stage,
    mesh: Mesh,
    *,
    optimizer: OptimizerConfig,
    total_steps: int,
    num_microbatches: int = 1,
    state: StateConfig,
) -> Program:
    """Builds the step of a stage from the fields of `TrainConfig` that it depends on.

    Raises:
      ValueError, UserError: a parameter cannot be laid out, or the optimizer's fields do not fit.
    """
    axes = stage.axes and part(stage.axes, state.trainable)
    made = make_optimizer(optimizer, total_steps=total_steps, axes=axes)
    layout = make_layout(stage, made, mesh=mesh, config=state)
    step = make_train_step(stage, made, layout, num_microbatches=num_microbatches)
    return Program(stage, mesh, made, layout, step, num_microbatches)
