"""What training changes, and where it lies on the mesh."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from speechlm_jax.arrays import Array, PyTree
from speechlm_jax.sharding import param_shardings
from speechlm_jax.train.optimizer import Optimizer
from speechlm_jax.train.stage import Stage


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A pytree of arrays, or of their shapes or shardings; `step` counts finished updates."""

    step: Any
    params: PyTree
    variables: PyTree
    opt_state: PyTree


@dataclasses.dataclass(frozen=True)
class StateLayout:
    """The shapes of a state and where each array lies, both as a `TrainState`."""

    shapes: TrainState
    shardings: TrainState

    @property
    def abstract(self) -> TrainState:
        """Shapes with their shardings, as a checkpoint wants them."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            self.shapes,
            self.shardings,
        )


def make_layout(stage: Stage, optimizer: Optimizer, *, mesh: Mesh) -> StateLayout:
    """Shapes and shardings of a stage's state; computes nothing.

    Optimizer moments lie where their parameter lies; variables and counters lie on every device.

    Raises:
      ValueError, UserError: a parameter cannot be laid out (see `sharding.logical_to_spec`).
    """
    shapes = jax.eval_shape(lambda key: _make_state(stage, optimizer, key), jax.random.key(0))
    everywhere = NamedSharding(mesh, PartitionSpec())
    params = param_shardings(shapes.params, stage.axes, mesh=mesh)
    shardings = TrainState(
        step=everywhere,
        params=params,
        variables=jax.tree.map(lambda _: everywhere, shapes.variables),
        opt_state=_moment_shardings(shapes, params, everywhere),
    )
    return StateLayout(shapes=shapes, shardings=shardings)


def _moment_shardings(shapes: TrainState, params: PyTree, everywhere: NamedSharding) -> PyTree:
    """A moment's path in the optimizer's state ends with its parameter's path, however wrapped.

    (`optax.tree_utils.tree_map_params` cannot look into a partitioned optimizer such as Muon's.)
    """
    where = dict(jax.tree.leaves_with_path(params))
    sizes = {path: leaf.shape for path, leaf in jax.tree.leaves_with_path(shapes.params)}

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        for start in range(len(path)):
            if sizes.get(path[start:]) == leaf.shape:
                return where[path[start:]]
        return everywhere

    return jax.tree.map_with_path(sharding, shapes.opt_state)


def init_state(stage: Stage, optimizer: Optimizer, layout: StateLayout, *, seed: int) -> TrainState:
    """Draws a state; every device makes its own shards alone."""
    make = jax.jit(lambda key: _make_state(stage, optimizer, key), out_shardings=layout.shardings)
    return make(jax.random.key(seed))


def _make_state(stage: Stage, optimizer: Optimizer, key: Array) -> TrainState:
    params, variables = stage.init(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        variables=variables,
        opt_state=optimizer.transform.init(params),
    )
