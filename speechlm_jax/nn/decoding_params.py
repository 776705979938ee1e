"""A trained language model's parameters -> what decoding reads at each step, and no more.

Layers stand alone, adapters are folded into the maps, weights have the dtype of the activations
or are int8, and the output layer may be cut to the ids that can be said.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from speechlm_jax.arrays import Array, Int, PyTree, ndarray
from speechlm_jax.nn.adapters import merge_adapters
from speechlm_jax.nn.int8 import quantise_kernels
from speechlm_jax.nn.language_model import LanguageModel, LanguageModelConfig, functional
from speechlm_jax.sharding import PARAM_RULES, param_shardings

# Weights are whole along `embed`: a step would otherwise gather each of them.
RULES = {**PARAM_RULES, "embed": None}


@dataclasses.dataclass(frozen=True)
class Model:
    """A language model whose layers stand alone; equal ones share their compiled programs.

    Attributes:
      int8: whether its kernels are int8.
    """

    config: LanguageModelConfig
    int8: bool = False

    def bind(self, params: PyTree) -> LanguageModel:
        """Returns the model with these parameters."""
        return functional(self.config, stacked=False, int8=self.int8).bind(params)


class Weights(NamedTuple):
    """A model that decodes, its parameters, and the ids of its logits (ascending; None: all)."""

    model: Model
    params: PyTree
    subset: Int[ndarray, " ids"] | None


def prepare(
    config: LanguageModelConfig,
    params: PyTree,
    *,
    vocab_subset: Int[ndarray, " ids"] | None = None,
    int8: bool = False,
    mesh: Mesh | None = None,
) -> Weights:
    """Returns the weights that decoding reads.

    Args:
      params: of `language_model.functional(config)`, in any dtype.
      vocab_subset: the ids that can be said, ascending; None: all.
      int8: whether the maps of blocks and the output layer are int8 (`nn/int8.py`).
      mesh: where the parameters lie, split over `tensor`; None: on one device.
    """
    plain = dataclasses.replace(config.transformer, lora=None)
    tied = config.tied and vocab_subset is None and not int8
    model = Model(dataclasses.replace(config, transformer=plain, tied=tied), int8)
    arrange = partial(_arrange, config, vocab_subset, int8)
    places = None
    if mesh is not None:
        made = functional(model.config, stacked=False, int8=int8)
        shapes, axes = jax.eval_shape(arrange, params), made.axes
        places = param_shardings(shapes, axes, mesh=mesh, rules=RULES)
    return Weights(model, jax.jit(arrange, out_shardings=places)(params), vocab_subset)


def _arrange(
    config: LanguageModelConfig,
    vocab_subset: Int[ndarray, " ids"] | None,
    int8: bool,
    params: PyTree,
) -> PyTree:
    """Folds adapters, sets layers apart, cuts the output layer, and rounds or casts."""
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

    def cast(path: tuple, leaf: Array) -> Array:
        if leaf.dtype == jnp.int8:
            return leaf
        # Norms are computed in float32, and so are products with int8.
        scales = path[-1].key in ("scale", "kernel_scale")
        return leaf.astype(jnp.float32 if scales else dtype)

    return jax.tree_util.tree_map_with_path(cast, params)
