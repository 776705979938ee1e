"""The fused loss against logits and autodiff, in any chunks, on a mesh; what it holds in memory."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechlm_jax.nn import fused_loss
from speechlm_jax.nn.fused_loss import fused_cross_entropy
from speechlm_jax.nn.losses import cross_entropy
from speechlm_jax.sharding import MeshConfig, make_mesh

BATCH, LENGTH, EMBED, VOCAB = 4, 14, 16, 40


@pytest.fixture(scope="module")
def arrays():
    random = np.random.default_rng(0)
    return (
        jnp.array(random.normal(size=(BATCH, LENGTH, EMBED)), jnp.float32),
        jnp.array(random.normal(size=(EMBED, VOCAB)), jnp.float32),
        jnp.array(random.integers(0, VOCAB, (BATCH, LENGTH))),
        jnp.array(random.random((BATCH, LENGTH)) < 0.7, jnp.float32),
    )


def plain(hidden, kernel, targets, weights, z_weight):
    logits = hidden @ kernel
    losses = cross_entropy(logits, targets)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    right = jnp.argmax(logits, axis=-1) == targets
    return jnp.sum(weights * (losses + z_weight * log_z**2)), (losses, right)


def fused(hidden, kernel, targets, weights, z_weight, chunk):
    out = fused_cross_entropy(hidden, kernel, targets, weights, z_weight=z_weight, chunk=chunk)
    return 3.0 * out.loss_sum, (out.losses, out.correct)


def agree(found, expected):
    (value, (losses, correct)), grads = found
    (expected_value, (expected_losses, right)), expected_grads = expected
    np.testing.assert_allclose(value, 3.0 * expected_value, rtol=1e-5)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(correct, right)
    for one, other in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(one, 3.0 * other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("z_weight, chunk", [(0.0, 1), (1e-2, 20), (0.0, 9999)])
def test_value_and_gradients_are_those_of_the_logits(arrays, z_weight, chunk):
    expected = jax.value_and_grad(plain, (0, 1), has_aux=True)(*arrays, z_weight)
    agree(jax.value_and_grad(fused, (0, 1), has_aux=True)(*arrays, z_weight, chunk), expected)
    value, _ = fused(*arrays, z_weight, chunk)
    np.testing.assert_allclose(value, 3.0 * expected[0][0], rtol=1e-5)


@pytest.fixture
def optimised():
    """XLA as in training: only then are a single chunk's products part of the whole program."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    before = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "true"
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [8, 9999])
def test_bfloat16_differs_by_its_rounding_alone(arrays, optimised, tied, chunk):
    hidden, kernel, *rest = arrays
    table = kernel.T if tied else kernel

    def lost(hidden, table):
        kernel = table.T if tied else table
        return fused_cross_entropy(hidden, kernel, *rest, chunk=chunk).loss_sum

    step = jax.jit(jax.value_and_grad(lost, (0, 1)))
    half, table = hidden.astype(jnp.bfloat16), table.astype(jnp.bfloat16).astype(jnp.float32)
    value, grads = step(half, table)
    expected, expected_grads = step(half.astype(jnp.float32), table)
    np.testing.assert_allclose(value, expected, rtol=2**-8)
    for one, other in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(one.astype(jnp.float32), other, rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize("name, positions", [("cuda", 4096), ("tpu", 1024), ("cpu", 1024)])
def test_chunks_are_those_of_the_platform(name, positions, monkeypatch):
    monkeypatch.setattr(fused_loss, "platform", lambda: name)
    hidden = jnp.zeros((2, 8192, 1))
    ids = jnp.zeros((2, 8192), jnp.int32)
    lost = jax.make_jaxpr(lambda *given: fused_cross_entropy(*given))(
        hidden, jnp.zeros((1, 4)), ids, ids * 0.0
    )
    assert f"f32[2,{positions // 2},4]" in str(lost) and f"f32[2,{positions},4]" not in str(lost)


@pytest.mark.parametrize(
    "mesh", [MeshConfig(fsdp=2, tensor=2), MeshConfig(replica=2, fsdp=1, context=2)], ids=str
)
def test_a_mesh_changes_nothing(arrays, mesh):
    expected = jax.value_and_grad(plain, (0, 1), has_aux=True)(*arrays, 1e-2)
    with jax.set_mesh(make_mesh(mesh)):
        step = jax.jit(jax.value_and_grad(lambda *a: fused(*a, 1e-2, 8), (0, 1), has_aux=True))
        agree(step(*arrays), expected)


def test_the_logits_are_never_whole():
    hidden = jax.ShapeDtypeStruct((2, 512, 32), jnp.float32)
    kernel = jax.ShapeDtypeStruct((32, 8192), jnp.float32)
    ids = jax.ShapeDtypeStruct((2, 512), jnp.int32)
    weights = jax.ShapeDtypeStruct((2, 512), jnp.float32)

    def temporary(function):
        lowered = jax.jit(jax.grad(function, (0, 1), has_aux=True)).lower
        return lowered(hidden, kernel, ids, weights).compile().memory_analysis().temp_size_in_bytes

    whole = 2 * 512 * 8192 * 4
    assert temporary(lambda *a: plain(*a, 0.0)) > whole
    assert temporary(lambda *a: fused(*a, 0.0, 64)) < whole / 4
