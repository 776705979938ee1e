"""int8 within half a step of the floats, in weights and in the cache; nothing of it when off."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from speechlm_jax.id_set import IdSet
from speechlm_jax.nn.cache import Cache, attend, write
from speechlm_jax.nn.decoding_params import prepare
from speechlm_jax.nn.engine import empty_slots, slots_shardings
from speechlm_jax.nn.inference import GenerateRequest, Inference
from speechlm_jax.nn.int8 import Quantised, dequantise, quantise
from speechlm_jax.nn.language_model import functional
from speechlm_jax.nn.layers import Linear, Lora
from speechlm_jax.nn.sampling import Sampling
from speechlm_jax.sharding import MeshConfig, make_mesh

ROUNDING = 0.5 * (1 + 1e-5)  # of a scale; float32 adds a little
SAMPLED = Sampling(temperature=1.0, top_p=0.9)
LENGTH = 20


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("size", [1, 64])
def test_a_number_differs_by_at_most_half_a_step(size):
    sizes = 10.0 ** np.arange(-34, 35)  # of the vectors
    x = normal(0, len(sizes), size) * sizes.astype(np.float32)[:, None]
    found = quantise(x)
    assert found.values.dtype == np.int8 and found.scales.dtype == np.float32
    assert (np.abs(dequantise(found) - x) <= ROUNDING * found.scales[:, None]).all()
    assert (np.abs(found.values).max(axis=1) == 127).all()


def test_zeros_stay_zeros_and_what_is_no_number_stays_none():
    x = jnp.array([[0.0, 0.0], [jnp.nan, 1.0]])
    np.testing.assert_array_equal(dequantise(quantise(x))[0], 0)
    assert np.isnan(dequantise(quantise(x))).any(axis=1).tolist() == [False, True]


@pytest.mark.parametrize("tied", [False, True])
def test_each_output_of_each_map_is_within_its_bound(config, draw, tied):
    stack = dataclasses.replace(config.transformer, lora=Lora(rank=2), biases=("q", "k", "v"))
    config = dataclasses.replace(config, transformer=stack, tied=tied)
    params = draw(functional(config))
    floats, made = (prepare(config, params, int8=int8).params for int8 in (False, True))
    if tied:
        floats["head"] = {"kernel": floats["embedding"].T}
    scales = {
        path[:-1]: np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(made)
        if path[-1].key == "kernel_scale"
    }
    rounded = dict(jax.tree_util.tree_leaves_with_path(made))
    for path, leaf in jax.tree_util.tree_leaves_with_path(floats):
        if path[-1].key != "kernel":
            np.testing.assert_array_equal(rounded[path], leaf)
            continue
        assert rounded[path].dtype == jnp.int8 and scales[path[:-1]].shape == leaf.shape[1:]
        error = np.abs(rounded[path] * scales[path[:-1]] - leaf)
        assert (error <= ROUNDING * scales[path[:-1]]).all()
        assert (np.abs(rounded[path]).max(axis=0) == 127).all()
    assert len(scales) == 7 * config.transformer.num_layers + 1
    assert len(rounded) == len(jax.tree.leaves(floats)) + len(scales)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_a_linear_map_of_an_int8_kernel(dtype, tolerance):
    layer, x = Linear(12, 8, ("embed", "mlp"), rngs=nnx.Rngs(0), bias=True), normal(0, 3, 12)
    kernel = quantise(layer.kernel[...].T)
    expected = x @ dequantise(kernel).T + 2.0
    layer.scale_outputs()
    assert layer.kernel_scale.get_metadata("logical") == ("mlp",)
    layer.kernel[...], layer.kernel_scale[...] = kernel.values.T, kernel.scales
    layer.bias[...] = jnp.full(8, 2.0)
    found = layer(x.astype(dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(found.astype("float32"), expected, atol=tolerance, rtol=tolerance)


def empty(rows, dtype):
    return Cache.empty(layers=1, kv_heads=2, head_dim=8, rows=rows, length=LENGTH, dtype=dtype)


def test_the_cache_keeps_what_is_written_within_its_bound():
    new, places = normal(0, 3, 2, 2, 8), jnp.array([[0, 1], [7, 8], [19, LENGTH]])
    kept = write(empty(3, "int8").v[0], new, places)
    floats = write(empty(3, "float32").v[0], new, places)
    assert kept.values.dtype == jnp.int8 and kept.shape == floats.shape
    assert kept.scales.shape == (2, 3, LENGTH)
    error = np.abs(dequantise(kept) - floats)
    assert (error <= ROUNDING * np.asarray(kept.scales)[..., None]).all()
    again = write(kept, normal(1, 3, 2, 2, 8), jnp.full((3, 2), LENGTH))
    jax.tree.map(np.testing.assert_array_equal, again, kept)


def test_attention_to_an_int8_cache_is_attention_to_its_floats_and_reads_no_further():
    q, ends = normal(0, 3, 1, 4, 8), jnp.array([5, 0, LENGTH])
    k, v = (quantise(normal(seed, 2, 3, LENGTH, 8)) for seed in (1, 2))
    places = ends[:, None] - 1
    expected = attend(q, dequantise(k), dequantise(v), places, ends, 1)
    beyond = jnp.arange(LENGTH) >= ends[:, None]
    k, v = (Quantised(x.values, jnp.where(beyond, jnp.nan, x.scales)) for x in (k, v))
    np.testing.assert_allclose(attend(q, k, v, places, ends, 1), expected, atol=1e-6)


def requests():
    random = np.random.default_rng(0)
    return [
        GenerateRequest(
            random.integers(0, 24, 1 + 5 * i % 9).tolist(), stops=(3,), max_new=9, seed=i,
            sampling=SAMPLED if i % 2 else None,
        )
        for i in range(6)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def small(config, params):
    return Inference(
        config, params, batch_size=2, length=LENGTH, int8_weights=True, int8_cache=True
    )


def test_a_reply_depends_on_its_request_alone(config, params, small):
    asked = requests()
    replies = small.generate(asked)
    assert small.generate(asked[::-1]) == replies[::-1]
    assert [small.generate([request])[0] for request in asked] == replies
    large = Inference(
        config, params, batch_size=5, length=LENGTH, int8_weights=True, int8_cache=True
    )
    assert large.generate(asked) == replies


@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_cut_output_layer_is_a_part_of_the_whole(config, draw, tied):
    config, ids = dataclasses.replace(config, tied=tied), IdSet.of(range(1, 24, 2))
    params = draw(functional(config))
    whole, cut = (
        prepare(config, params, vocab_subset=subset, int8=True).params["head"]
        for subset in (None, ids.to_array())
    )
    jax.tree.map(
        lambda all_, some: np.testing.assert_array_equal(all_[..., ids.to_array()], some),
        whole, cut,
    )  # fmt: skip
    asked = [dataclasses.replace(request, allowed=ids) for request in requests()]
    whole, cut = (
        Inference(
            config, params, batch_size=2, length=LENGTH, vocab_subset=subset,
            int8_weights=True, int8_cache=True,
        )
        for subset in (None, ids)
    )  # fmt: skip
    assert whole.generate(asked) == cut.generate(asked)


def test_a_mesh_splits_scales_like_what_they_scale(config, params, small):
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    block = prepare(config, params, int8=True, mesh=mesh).params["transformer"]["blocks"][0]
    for name, outputs in (("gate", "tensor"), ("down", None)):
        kernel, scale = (
            block["mlp"][name][leaf].sharding.spec for leaf in ("kernel", "kernel_scale")
        )
        assert (kernel[1], *scale) == (outputs, outputs)
    slots = jax.eval_shape(lambda: empty_slots(config, 4, LENGTH, int8_cache=True))
    k = slots_shardings(slots, mesh).cache.k[0]
    assert k.values.spec == k.scales.spec == PartitionSpec("tensor", ("replica", "fsdp"))
    split = Inference(
        config, params, batch_size=2, length=LENGTH, int8_weights=True, int8_cache=True, mesh=mesh
    )
    assert split.generate(requests()) == small.generate(requests())


def test_without_the_option_nothing_is_int8(config, params):
    weights, ids = prepare(config, params), jnp.zeros((2, 3), jnp.int32)
    cache = empty_slots(config, 2, LENGTH).cache

    def extend(params, cache):
        model = weights.model.bind(params)
        hidden, cache = model.extend(ids, cache)
        return model.logits(hidden), cache

    assert "i8>" not in jax.jit(extend).lower(weights.params, cache).as_text()
    made = prepare(config, params, int8=True)
    small = empty_slots(config, 2, LENGTH, int8_cache=True).cache
    weights = made
    assert "i8>" in jax.jit(extend).lower(made.params, small).as_text()
