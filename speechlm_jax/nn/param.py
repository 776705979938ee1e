"""A parameter is one line; a module is built once and used as a function of its parameters."""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import unflatten_dict

from speechlm_jax.arrays import Array, Key, PyTree

Axes: TypeAlias = tuple[str | None, ...]
Module = TypeVar("Module", bound=nnx.Module)


class Buffer(nnx.Variable):
    """State that no gradient trains, such as an EMA codebook; it travels as `variables`."""


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes, *, stddev: float) -> nnx.Param:
    """A parameter drawn from a normal distribution; `axes` are its logical axes."""
    return nnx.Param(stddev * jax.random.normal(rngs.params(), shape), logical=axes)


def constant(shape: tuple[int, ...], axes: Axes, *, value: float) -> nnx.Param:
    """A parameter that starts at one value everywhere."""
    return nnx.Param(jnp.full(shape, value, jnp.float32), logical=axes)


def stack(make: Callable[[nnx.Rngs], Module], num_layers: int, rngs: nnx.Rngs) -> Module:
    """`num_layers` modules of one kind as one module whose parameters have a leading layer axis."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    keys = jax.random.split(rngs.params(), num_layers)
    state = jax.vmap(lambda key: nnx.split(make(nnx.Rngs(key)))[1])(keys)
    stacked = nnx.merge(graphdef, state)
    for _, variable in nnx.iter_graph(stacked):
        if isinstance(variable, nnx.Param):
            variable.set_metadata("logical", ("layers", *variable.get_metadata("logical")))
    return stacked


@dataclasses.dataclass(frozen=True)
class Functional:
    """A module as functions of its parameters.

    Attributes:
      make: builds the module from random streams.
    """

    make: Callable[[nnx.Rngs], nnx.Module]

    @cached_property
    def _abstract(self) -> tuple[Any, nnx.State, nnx.State]:
        module = nnx.eval_shape(lambda: self.make(nnx.Rngs(0)))
        graphdef, params, variables = nnx.split(module, nnx.Param, ...)
        return graphdef, params, variables

    @property
    def axes(self) -> PyTree:
        """Logical axes of every parameter, in the tree of `init`'s parameters."""
        flat = nnx.to_flat_state(self._abstract[1])
        return unflatten_dict({path: leaf.get_metadata("logical") for path, leaf in flat})

    @property
    def shapes(self) -> PyTree:
        """Shape and dtype of every parameter; nothing is drawn."""
        return nnx.to_pure_dict(self._abstract[1])

    @property
    def variable_shapes(self) -> PyTree:
        """Shape and dtype of every variable; nothing is drawn."""
        return nnx.to_pure_dict(self._abstract[2])

    def init(self, key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        """Draws (params, variables); pure, so it can be jitted, sharded or only shaped."""
        _, params, variables = nnx.split(self.make(nnx.Rngs(params=key)), nnx.Param, ...)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(variables)

    def bind(self, params: PyTree, variables: PyTree | None = None) -> Any:
        """The module with these parameters and variables."""
        return nnx.merge(self._abstract[0], params, variables or {})
