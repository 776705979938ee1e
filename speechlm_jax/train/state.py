"""The training state and its layout on the mesh."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from speechlm_jax.arrays import Array, PyTree
from speechlm_jax.errors import UserError
from speechlm_jax.sharding import param_shardings, with_places
from speechlm_jax.train.optimizer import Optimizer
from speechlm_jax.train.stage import Stage
from speechlm_jax.train.trainable import overlay, part


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Training state: a pytree of arrays, or of their shapes or shardings.

    Attributes:
      step: number of finished updates, skipped ones included.
      opt_state: optimizer state of the trained parameters alone.
      extras: state of options: "ema" (averaged parameters), "norms" (mean of recent gradient norms,
        and their count).
    """

    step: Any
    params: PyTree
    variables: PyTree
    opt_state: PyTree
    extras: dict[str, PyTree] = dataclasses.field(default_factory=dict)

    @property
    def averaged(self) -> PyTree:
        """The parameters to evaluate: their average over steps if one is kept."""
        return self.extras.get("ema", self.params)

    def starting_from(self, params: PyTree, variables: PyTree) -> "TrainState":
        """Returns the state with another run's weights; leaves absent in `params` stay as drawn."""
        params = overlay(self.params, params)
        extras = dict(self.extras)
        if "ema" in extras:
            extras["ema"] = jax.tree.map(jnp.copy, params)
        return dataclasses.replace(self, params=params, variables=variables, extras=extras)


@dataclasses.dataclass(frozen=True)
class StateConfig:
    """Options of the training state.

    Attributes:
      trainable: patterns of the parameters that are trained (see `trainable.part`); none: all.
      ema_decay: decay rate of an average of the parameters over steps; 0 keeps no average.
      skip_above: an update is skipped if its gradient's norm exceeds this many times the mean of
        recent norms; 0 skips none for its norm.
    """

    trainable: tuple[str, ...] = ()
    ema_decay: float = 0.0
    skip_above: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay: {self.ema_decay} is not within 0 .. 1")
        if self.skip_above and not self.skip_above > 1:
            raise UserError(f"skip_above: {self.skip_above} would skip every other update; give 3")


@dataclasses.dataclass(frozen=True)
class StateLayout:
    """Shapes and shardings of a state, both as a `TrainState`."""

    shapes: TrainState
    shardings: TrainState
    config: StateConfig = StateConfig()

    @property
    def abstract(self) -> TrainState:
        """Shapes with their shardings, as needed to restore a checkpoint."""
        return with_places(self.shapes, self.shardings)


def make_layout(
    stage: Stage, optimizer: Optimizer, *, mesh: Mesh, config: StateConfig = StateConfig()
) -> StateLayout:
    """Returns the shapes and shardings of a stage's state; computes nothing.

    Optimizer moments are sharded like their parameter; variables and counters are on every device.

    Raises:
      ValueError, UserError: a parameter cannot be laid out (see `sharding.logical_to_spec`).
    """
    make = partial(_make_state, stage, optimizer, config)
    shapes = jax.eval_shape(lambda: make(jax.random.key(0)))
    everywhere = NamedSharding(mesh, PartitionSpec())
    params = param_shardings(shapes.params, stage.axes, mesh=mesh)
    shardings = TrainState(
        step=everywhere,
        params=params,
        variables=jax.tree.map(lambda _: everywhere, shapes.variables),
        opt_state=_like_params(shapes.opt_state, shapes, params, everywhere),
        extras=_like_params(shapes.extras, shapes, params, everywhere),
    )
    return StateLayout(shapes=shapes, shardings=shardings, config=config)


def _like_params(
    tree: PyTree, shapes: TrainState, params: PyTree, everywhere: NamedSharding
) -> PyTree:
    """Returns shardings of `tree`: a moment gets that of its parameter, the rest `everywhere`.

    A moment's path in the optimizer's state ends with its parameter's path, however wrapped.
    (`optax.tree_utils.tree_map_params` cannot look into a partitioned optimizer such as Muon's.)
    """
    where = dict(jax.tree.leaves_with_path(params))
    sizes = {path: leaf.shape for path, leaf in jax.tree.leaves_with_path(shapes.params)}

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        for start in range(len(path)):
            if sizes.get(path[start:]) == leaf.shape:
                return where[path[start:]]
        return everywhere

    return jax.tree.map_with_path(sharding, tree)


def init_state(stage: Stage, optimizer: Optimizer, layout: StateLayout, *, seed: int) -> TrainState:
    """Draws a state; every device makes only its own shards."""
    make = partial(_make_state, stage, optimizer, layout.config)
    return jax.jit(make, out_shardings=layout.shardings)(jax.random.key(seed))


def _make_state(stage: Stage, optimizer: Optimizer, config: StateConfig, key: Array) -> TrainState:
    params, variables = stage.init(key)
    extras: dict[str, PyTree] = {}
    if config.ema_decay:
        extras["ema"] = jax.tree.map(jnp.copy, params)
    if config.skip_above:
        extras["norms"] = {"mean": jnp.zeros(()), "count": jnp.zeros((), jnp.int32)}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        variables=variables,
        opt_state=optimizer.transform.init(part(params, config.trainable)),
        extras=extras,
    )
