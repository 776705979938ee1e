"""A trained language model's parameters -> what decoding reads at each step, and no more.

Layers stand alone, adapters are folded into the maps, weights have the dtype of the activations
or are int8, and the output layer may be cut to the ids that can be said.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from speechlm_jax.arrays import Array, Int, PyTree, ndarray
from speechlm_jax.nn.adapters import merge_adapters
from speechlm_jax.nn.int8 import quantise_kernels
from speechlm_jax.nn.language_model import LanguageModel, LanguageModelConfig, functional
from speechlm_jax.nn.layers import Linear
from speechlm_jax.sharding import PARAM_RULES, param_shardings, with_places

# Weights are whole along `embed`: a step would otherwise gather each of them.
RULES = {**PARAM_RULES, "embed": None}


@dataclasses.dataclass(frozen=True)
class Model:
    """A language model whose layers stand alone; equal ones share their compiled programs.

    Attributes:
      transposed: kernels lie as (outputs, inputs).
      int8: kernels are int8, with scales.
    """

    config: LanguageModelConfig
    transposed: bool = False
    int8: bool = False

    def bind(self, params: PyTree) -> LanguageModel:
        """Returns the model with these parameters."""
        bound = functional(self.config, stacked=False, int8=self.int8).bind(params)
        for _, module in nnx.iter_graph(bound):
            if isinstance(module, Linear):
                module.transposed = self.transposed
        return bound


class Weights(NamedTuple):
    """A model that decodes, its parameters, and the ids of its logits (ascending; None: all)."""

    model: Model
    params: PyTree
    subset: Int[ndarray, " ids"] | None


def layout(config: LanguageModelConfig, mesh: Mesh) -> PyTree:
    """Returns the shapes of a trained model's parameters, with their shardings over a mesh."""
    model = functional(config)
    places = param_shardings(model.shapes, model.axes, mesh=mesh, rules=RULES)
    return with_places(model.shapes, places)


def prepare(
    config: LanguageModelConfig,
    params: PyTree,
    *,
    vocab_subset: Int[ndarray, " ids"] | None = None,
    int8: bool = False,
    transposed: bool = False,
    mesh: Mesh | None = None,
) -> Weights:
    """Returns the weights that decoding reads.

    Args:
      params: of `language_model.functional(config)`, in any dtype.
      vocab_subset: the ids that can be said, ascending; None: all.
      int8: whether the maps of blocks and the output layer are int8 (`nn/int8.py`).
      transposed: whether kernels lie as (outputs, inputs), as a CPU reads them fastest
        (`layers.times_transposed`).
      mesh: where the parameters lie, split over `tensor`; None: on one device. A subset that does
        not divide over it gets ids that no request allows.
    """
    if vocab_subset is not None and mesh is not None:
        vocab_subset = _fill_up(vocab_subset, config.vocab_size, mesh.shape["tensor"])
    tied = config.tied and vocab_subset is None and not int8
    model = Model(dataclasses.replace(_folded(config), tied=tied), transposed, int8)
    arrange = partial(_arrange, config, vocab_subset, int8, transposed)
    places = None if mesh is None else _places(model, jax.eval_shape(arrange, params), mesh)
    return Weights(model, jax.jit(arrange, out_shardings=places)(params), vocab_subset)


def planned(config: LanguageModelConfig, mesh: Mesh) -> Weights:
    """Returns what `prepare` would on a mesh, with shapes and places instead of parameters."""
    model = Model(_folded(config))
    arrange = partial(_arrange, config, None, False, False)
    shapes = jax.eval_shape(arrange, functional(config).shapes)
    return Weights(model, with_places(shapes, _places(model, shapes, mesh)), None)


def _folded(config: LanguageModelConfig) -> LanguageModelConfig:
    """The config without adapters."""
    plain = dataclasses.replace(config.transformer, lora=None)
    return dataclasses.replace(config, transformer=plain)


def _places(model: Model, shapes: PyTree, mesh: Mesh) -> PyTree:
    axes = functional(model.config, stacked=False, int8=model.int8).axes
    if model.transposed:
        axes = jax.tree_util.tree_map_with_path(
            lambda path, names: names[::-1] if path[-1].key == "kernel" else names,
            axes, is_leaf=lambda node: isinstance(node, tuple),
        )  # fmt: skip
    return param_shardings(shapes, axes, mesh=mesh, rules=RULES)


def _fill_up(ids: Int[ndarray, " ids"], size: int, multiple: int) -> Int[ndarray, " more_ids"]:
    """Adds the last other ids of a vocabulary, until the number of ids is a multiple."""
    others = np.setdiff1d(np.arange(size, dtype=ids.dtype), ids)
    missing = -len(ids) % multiple
    return np.sort(np.concatenate([ids, others[len(others) - missing :]]))


def _arrange(
    config: LanguageModelConfig,
    vocab_subset: Int[ndarray, " ids"] | None,
    int8: bool,
    transposed: bool,
    params: PyTree,
) -> PyTree:
    """Folds adapters, sets layers apart, cuts the output layer, rounds, transposes and casts."""
    _, params = merge_adapters(config, params)
    stacked = params["transformer"]["blocks"]
    layers = {
        number: jax.tree.map(lambda leaf: leaf[number], stacked)  # noqa: B023
        for number in range(config.transformer.num_layers)
    }
    params = {**params, "transformer": {"blocks": layers}}
    if vocab_subset is not None or (int8 and config.tied):
        table = params["embedding"].T if config.tied else params["head"]["kernel"]
        params["head"] = {"kernel": table if vocab_subset is None else table[:, vocab_subset]}
    params = quantise_kernels(params) if int8 else params
    dtype = jnp.dtype(config.dtype)

    def finish(path: tuple, leaf: Array) -> Array:
        name = path[-1].key
        leaf = leaf.T if transposed and name == "kernel" else leaf
        if leaf.dtype == jnp.int8:
            return leaf
        # Norms are computed in float32, and so are products with int8.
        return leaf.astype(jnp.float32 if name in ("scale", "kernel_scale") else dtype)

    return jax.tree_util.tree_map_with_path(finish, params)
