"""Functional modules: axes beside parameters, pure initialisation, parameters and buffers apart."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from speechlm_jax.nn import param
from speechlm_jax.nn.language_model import functional
from speechlm_jax.nn.layers import Linear
from speechlm_jax.nn.param import Buffer, Functional


class Counter(nnx.Module):
    def __init__(self, rngs):
        self.scale = param.normal(rngs, (3,), ("embed",), stddev=1.0)
        self.seen = Buffer(jnp.int32(7))


def is_axes(leaf):
    return isinstance(leaf, tuple)


def test_axes_are_the_tree_of_the_parameters_with_one_word_a_dimension(config, params):
    axes = functional(config).axes
    assert jax.tree.structure(axes, is_leaf=is_axes) == jax.tree.structure(params)
    jax.tree.map(
        lambda a, p: np.testing.assert_equal(len(a), p.ndim), axes, params, is_leaf=is_axes
    )


def test_stacked_parameters_have_a_layer_axis_in_front(config):
    axes = functional(config).axes
    assert axes["transformer"]["blocks"]["mlp"]["up"]["kernel"] == ("layers", "embed", "mlp")
    assert axes["embedding"] == ("vocab", "embed")


def test_initialisation_is_pure_and_draws_every_layer_anew():
    def make(rngs):
        return param.stack(lambda r: Linear(40, 30, ("embed", "mlp"), rngs=r), 2, rngs)

    draw = jax.jit(Functional(make).init)
    first, again, other = (draw(jax.random.key(seed))[0]["kernel"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (2, 40, 30)
    assert not np.allclose(first[0], first[1]) and not np.allclose(first, other)
    np.testing.assert_allclose(jnp.std(first), 40**-0.5, rtol=0.05)


def test_buffers_travel_as_variables():
    counter = Functional(Counter)
    params, variables = counter.init(jax.random.key(0))
    assert set(params) == {"scale"} and set(variables) == {"seen"}
    assert counter.axes == {"scale": ("embed",)}
    bound = counter.bind({"scale": jnp.arange(3.0)}, {"seen": jnp.int32(9)})
    assert int(bound.seen[...]) == 9
    np.testing.assert_array_equal(bound.scale[...], [0, 1, 2])
