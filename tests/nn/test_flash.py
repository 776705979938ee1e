"""Kernels (Pallas' in its interpreter) against the reference: forward, gradient, meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechlm_jax.errors import UserError
from speechlm_jax.nn import blockwise, cudnn
from speechlm_jax.nn.attention import Layout, attend, over, visible, whole
from speechlm_jax.nn.blockwise import attend_blockwise
from speechlm_jax.nn.flash import attend_splash, choose
from speechlm_jax.sharding import MeshConfig, make_mesh

LENGTH = 256


def packed(random, batch):
    """Three ragged documents in each row, then padding."""
    segments, positions = np.zeros((2, batch, LENGTH), np.int32)
    for row in range(batch):
        ends = [0, *np.sort(random.choice(np.arange(20, 240), 3, replace=False))]
        for number, (first, last) in enumerate(zip(ends[:-1], ends[1:], strict=True), start=1):
            segments[row, first:last] = number
            positions[row, first:last] = np.arange(last - first)
    return Layout(jnp.array(segments), jnp.array(positions))


@pytest.fixture(scope="module", params=[(2, 64), (1, 16)], ids=["head_dim 64", "multi-query"])
def case(request):
    kv_heads, size = request.param
    random = np.random.default_rng(0)
    layout = packed(random, 2)
    q = random.normal(size=(2, LENGTH, 4, size))
    k, v = random.normal(size=(2, 2, LENGTH, kv_heads, size))
    weight = random.normal(size=q.shape) * (np.asarray(layout.segments) > 0)[..., None, None]
    return layout, tuple(jnp.array(x, jnp.float32) for x in (q, k, v)), jnp.array(weight)


def value_and_grads(attend_by, qkv, weight):
    def summed(*qkv):
        out = attend_by(*qkv)
        return jnp.sum(out * weight), out

    (_, out), grads = jax.jit(jax.value_and_grad(summed, (0, 1, 2), has_aux=True))(*qkv)
    return out * (weight != 0), grads


def reference(layout):
    mask = visible(layout, layout, 1)
    return lambda q, k, v: attend(q, k, v, mask)


def by_kernel(layout, kernel):
    if kernel == "blockwise":
        mask = visible(layout, layout, 1)
        return lambda q, k, v: attend_blockwise(q, k, v, mask, block=1)
    return lambda q, k, v: attend_splash(q, k, v, layout.segments)


@pytest.mark.parametrize("kernel", ["splash", "blockwise"])
def test_a_kernel_agrees_with_the_reference(case, kernel):
    layout, qkv, weight = case
    out, grads = value_and_grads(by_kernel(layout, kernel), qkv, weight)
    expected, expected_grads = value_and_grads(reference(layout), qkv, weight)
    np.testing.assert_allclose(out, expected, atol=2e-5)
    for one, other in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize(
    "kernel, mesh",
    [
        ("splash", MeshConfig(fsdp=2, tensor=2)),
        ("splash", MeshConfig(fsdp=2, context=2)),
        ("blockwise", MeshConfig(fsdp=2, tensor=2)),
    ],
    ids=str,
)
def test_a_mesh_changes_nothing(case, kernel, mesh):
    layout, qkv, weight = case
    with jax.set_mesh(make_mesh(mesh)):
        out, grads = value_and_grads(by_kernel(layout, kernel), qkv, weight)
    expected, expected_grads = value_and_grads(reference(layout), qkv, weight)
    np.testing.assert_allclose(out, expected, atol=2e-5)
    for one, other in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("block", [None, 1, 24])
@pytest.mark.parametrize("length", [40, 300])
def test_blocks_of_queries_give_what_all_at_once_do(block, length, monkeypatch):
    monkeypatch.setattr(blockwise, "SCORES", 2**14)  # a row at a time
    random = np.random.default_rng(length)
    q, k, v = (
        jnp.array(random.normal(size=(3, length, heads, 8)), jnp.float32) for heads in (4, 2, 2)
    )
    layout = whole(jnp.array([length, length // 2, 1]), length)
    mask = visible(layout, layout, block)
    weight = jnp.array(random.normal(size=q.shape)) * (layout.segments > 0)[..., None, None]
    out, grads = value_and_grads(
        lambda *qkv: attend_blockwise(*qkv, mask, block=block), (q, k, v), weight
    )
    expected, expected_grads = value_and_grads(lambda *qkv: attend(*qkv, mask), (q, k, v), weight)
    np.testing.assert_allclose(out, expected, atol=2e-5)
    for one, other in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_row_at_a_time_takes_less_memory(monkeypatch):
    monkeypatch.setattr(blockwise, "SCORES", 1)
    mask = jnp.ones((2, 2048, 2048), bool)
    qkv = [jax.ShapeDtypeStruct((2, 2048, 4, 8), jnp.float32)] * 3

    def bytes_of(attend_by):
        grads = jax.grad(lambda *qkv: jnp.sum(attend_by(*qkv)), (0, 1, 2))
        return jax.jit(grads).lower(*qkv).compile().memory_analysis().temp_size_in_bytes

    whole = bytes_of(lambda *qkv: attend(*qkv, mask))
    in_blocks = bytes_of(lambda *qkv: attend_blockwise(*qkv, mask, block=1))
    assert in_blocks < 0.5 * whole


@pytest.mark.parametrize("kernel", ["splash", "blockwise"])
def test_a_change_in_one_document_changes_nothing_in_its_neighbours(case, kernel):
    layout, (q, k, v), _ = case
    second = (layout.segments == 2)[..., None, None]
    attend_by = jax.jit(by_kernel(layout, kernel))
    before, after = attend_by(q, k, v), attend_by(q, k + second, v + 3.0 * second)
    neighbours = np.asarray((layout.segments == 1) | (layout.segments == 3))
    np.testing.assert_array_equal(np.asarray(before)[neighbours], np.asarray(after)[neighbours])
    assert not np.allclose(before, after)


def auto(kernel="auto", *, block=1, length=256, dtype="bfloat16", head_dim=64):
    return choose(kernel, block=block, length=length, dtype=dtype, head_dim=head_dim)


def of_platform(name, kind="TPU v5", **axes):
    """A mesh of a machine that is not there."""
    sizes = {"replica": 1, "fsdp": 4, "tensor": 1, "context": 1, **axes}
    device = jax.sharding.AbstractDevice(kind, 1, name)
    return jax.sharding.use_abstract_mesh(
        jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes), abstract_device=device)
    )


def test_auto_follows_the_mesh_and_the_mask():
    assert auto() == "blockwise", "no mesh: this process's devices"
    with jax.set_mesh(make_mesh(MeshConfig())):
        assert auto(block=8, length=200) == "blockwise", "a mesh of CPUs"
    with jax.set_mesh(make_mesh(MeshConfig(context=2))):
        assert auto() == "reference", "keys lie elsewhere"
    assert auto("splash") == "splash"
    with of_platform("tpu"):
        assert auto(dtype="float32") == "splash"
        assert auto(length=200) == "reference"
        assert auto(block=8) == "reference"
    with of_platform("metal"):
        assert auto() == "reference"


@pytest.mark.parametrize("name", ["gpu", "cuda"])
def test_auto_takes_cudnn_on_a_gpu_where_it_can_attend(name, monkeypatch):
    with of_platform(name):
        assert auto() == "blockwise", "this process sees no GPU of Hopper's kind"
        monkeypatch.setattr(cudnn.fused, "check_compute_capability", lambda least: True)
        assert auto() == auto(length=200) == "cudnn"
        assert auto(dtype="float32") == auto(head_dim=12) == auto(block=8) == "blockwise"
        monkeypatch.setattr(cudnn, "fused", None)
        assert auto() == "blockwise", "a JAX whose private module has moved"
    with of_platform(name, context=2):
        assert auto(dtype="float32") == "reference", "keys lie elsewhere"


def test_a_kernel_that_does_not_know_the_mask_is_named():
    layout = whole(jnp.array([128]), 128)
    for kernel in ("splash", "cudnn"):
        with pytest.raises(UserError, match=f"attention={kernel}: is causal, .* block=8"):
            over(layout, 8, kernel=kernel, documents_at_once=64, dtype="bfloat16", head_dim=64)


def test_a_length_that_no_kernel_takes_is_named(case):
    layout, qkv, _ = case
    short = tuple(x[:, :100] for x in qkv)
    with pytest.raises(UserError, match="length 100: splash attention takes multiples of 128"):
        attend_splash(*short, layout.segments[:, :100])
