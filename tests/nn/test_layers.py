"""Convolutions against a loop and block by block; norms, linear maps, sinusoids by definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from speechlm_jax.nn.layers import Conv, LayerNorm, Linear, RMSNorm, sinusoids


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def conv(*, kernel=3, stride=1):
    made = Conv(4, 5, kernel=kernel, stride=stride, rngs=nnx.Rngs(0))
    made.bias[...] = normal(1, 5)
    return made


@pytest.mark.parametrize("kernel, stride", [(3, 1), (3, 2), (2, 3)])
def test_a_causal_convolution_equals_a_loop(kernel, stride):
    layer, x = conv(kernel=kernel, stride=stride), normal(2, 2, 9, 4)
    weights, bias, inputs = np.asarray(layer.kernel[...]), layer.bias[...], np.asarray(x)
    y = np.asarray(layer(x))
    for row, out in np.ndindex(*y.shape[:2]):
        expected = np.array(bias)
        for tap in range(kernel):
            place = out * stride - (kernel - 1) + tap
            if place >= 0:
                expected += inputs[row, place] @ weights[tap]
        np.testing.assert_allclose(y[row, out], expected, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_blocks_with_their_past_equal_the_whole(stride):
    layer, x = conv(stride=stride), normal(3, 2, 12, 4)
    parts, past = [], jnp.zeros((2, 2, 4))
    for first in range(0, 12, 4):
        part = x[:, first : first + 4]
        parts.append(layer(part, past))
        past = part[:, -2:]
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), layer(x), atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_centred_convolution_hears_as_much_after_as_before(stride):
    """Its output at `t` is the causal one's one input later."""
    causal, x = conv(), normal(2, 1, 9, 4)
    centred = Conv(4, 5, kernel=3, stride=stride, rngs=nnx.Rngs(0), causal=False)
    centred.bias[...] = causal.bias[...]
    later = causal(jnp.pad(x, ((0, 0), (0, 1), (0, 0))))[:, 1:]
    np.testing.assert_allclose(centred(x), later[:, ::stride], atol=1e-5)


def test_layer_norm_is_its_definition():
    norm, x = LayerNorm(32), 3.0 + 2.0 * normal(4, 3, 32)
    norm.scale[...], norm.bias[...] = normal(5, 32), normal(6, 32)
    told = np.asarray(x, np.float64)
    told = (told - told.mean(-1, keepdims=True)) / np.sqrt(told.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(norm(x), told * norm.scale[...] + norm.bias[...], atol=1e-5)
    assert norm(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_rms_norm_has_unit_root_mean_square_at_any_scale():
    norm, x = RMSNorm(32), normal(4, 3, 32)
    for scale in (1.0, 1e3):
        y = norm(scale * x)
        np.testing.assert_allclose(jnp.mean(y**2, axis=-1), 1.0, rtol=1e-3)
        np.testing.assert_allclose(
            y, x / np.sqrt(np.mean(np.square(x), -1, keepdims=True)), atol=1e-4
        )
    assert norm(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_linear_maps_start_with_the_stated_spread():
    layer = Linear(400, 300, ("embed", "mlp"), rngs=nnx.Rngs(0), bias=True, scale=0.5)
    assert abs(float(jnp.std(layer.kernel[...])) - 0.5 / 20) < 1e-3
    x = normal(5, 2, 400)
    layer.bias[...] = jnp.arange(300.0)
    np.testing.assert_allclose(layer(x), x @ layer.kernel[...] + jnp.arange(300.0), rtol=1e-5)
    assert layer.kernel.get_metadata("logical") == ("embed", "mlp")
    assert layer.bias.get_metadata("logical") == ("mlp",)


def test_sinusoids_by_their_definition():
    made = np.asarray(sinusoids(jnp.array([0.0, 3.0, 50.0]), 8))
    for row, place in enumerate((0.0, 3.0, 50.0)):
        for i in range(4):
            rate = 10_000.0 ** (-i / 3)
            np.testing.assert_allclose(made[row, i], np.sin(place * rate), atol=1e-5)
            np.testing.assert_allclose(made[row, 4 + i], np.cos(place * rate), atol=1e-5)
