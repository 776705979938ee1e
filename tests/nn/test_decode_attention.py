"""The kernels, in Pallas' interpreter, against the loop of `cache.attend`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechlm_jax.nn import cache, decode_attention
from speechlm_jax.nn.decode_attention import attend, attend_tpu, attend_triton, chosen
from speechlm_jax.nn.int8 import Quantised
from speechlm_jax.sharding import MeshConfig, make_mesh

KERNELS = {
    "tpu": jax.jit(partial(attend_tpu, interpret=True)),
    "triton": jax.jit(partial(attend_triton, interpret=True)),
}
# (length of the cache, ends of rows): inactive rows, one key, edges of blocks and splits, full rows
RAGGED = [(48, [0, 5, 48, 1]), (640, [640, 0, 513, 257]), (640, [0, 0, 0, 0])]


def drawn(length, ends, *, heads=6, groups=2, head_dim=64, dtype=jnp.float32):
    """Queries, keys and values, which are NaN from each row's end on."""
    random, rows = np.random.default_rng(0), len(ends)
    q = random.normal(size=(rows, heads, head_dim))
    k, v = random.normal(size=(2, groups, rows, length, head_dim))
    beyond = np.arange(length) >= np.array(ends)[:, None]
    k[:, beyond], v[:, beyond] = np.nan, np.nan
    return *(jnp.array(x, dtype) for x in (q, k, v)), jnp.array(ends, jnp.int32)


@jax.jit
def by_loop(q, k, v, ends):
    return cache.attend(q[:, None], k, v, ends[:, None] - 1, ends, 1)[:, 0]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("length, ends", RAGGED, ids=str)
def test_a_kernel_reads_what_is_filled_and_no_more(name, length, ends):
    case = drawn(length, ends)
    found = np.asarray(KERNELS[name](*case))
    np.testing.assert_allclose(found, by_loop(*case), atol=2e-6)
    assert not found[np.array(ends) == 0].any(), "rows that hold nothing get zeros"


@pytest.mark.parametrize("name", KERNELS)
def test_in_bfloat16_a_kernel_is_as_close_to_float32_as_the_loop(name):
    case = drawn(640, [640, 0, 513, 257], heads=8, groups=1, head_dim=128, dtype=jnp.bfloat16)
    exact = by_loop(*(x.astype(jnp.float32) for x in case[:3]), case[3])
    kernel, loop = (
        np.abs(np.asarray(found, np.float32) - exact).max()
        for found in (KERNELS[name](*case), by_loop(*case))
    )
    assert kernel < 1.5 * loop < 0.01


@pytest.mark.parametrize("name", KERNELS)
def test_other_rows_change_no_bit_of_a_row(name):
    q, k, v, ends = drawn(640, [640, 0, 513, 257])
    before = KERNELS[name](q, k, v, ends)
    others = jnp.array([0, 640, 513, 1], jnp.int32)
    after = KERNELS[name](-q.at[2].multiply(-1), jnp.nan_to_num(k), jnp.nan_to_num(v), others)
    np.testing.assert_array_equal(after[2], before[2])


def test_a_mesh_changes_nothing(monkeypatch):
    q, k, v, ends = drawn(48, [0, 5, 48, 1])
    monkeypatch.setattr(decode_attention, "chosen", lambda q, k: KERNELS["tpu"])
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=2, tensor=2))):
        found = jax.jit(attend, static_argnums=5)(q[:, None], k, v, ends[:, None] - 1, ends, 1)
    np.testing.assert_allclose(found[:, 0], KERNELS["tpu"](q, k, v, ends), atol=1e-6)


def test_a_kernel_is_chosen_by_platform_and_shape(monkeypatch):
    q, k = (jax.ShapeDtypeStruct(x, jnp.bfloat16) for x in ((4, 1, 6, 128), (2, 4, 640, 128)))
    narrow = q.update(shape=(4, 1, 6, 64)), k.update(shape=(2, 4, 640, 64))
    assert chosen(q, k) is None, "on a CPU the loop serves"
    for platform, kernel in (("tpu", attend_tpu), ("gpu", attend_triton)):
        monkeypatch.setattr(decode_attention, "platform", lambda platform=platform: platform)
        assert chosen(q, k) is kernel
        for refused in (
            (q.update(shape=(4, 2, 6, 128)), k),  # a prompt
            (q.update(dtype=jnp.float32), k.update(dtype=jnp.float32)),
            (q, Quantised(k.update(dtype=jnp.int8), k)),
            (q.update(shape=(4, 1, 6, 80)), k.update(shape=(2, 4, 640, 80))),
        ):
            assert chosen(*refused) is None
        assert (chosen(*narrow) is None) == (platform == "tpu")
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=1, tensor=4))):
        assert chosen(q, k) is None, "two heads of keys do not divide over four devices"


@pytest.mark.parametrize("length", [336, 8192])
def test_the_gpu_kernel_is_lowered_to_triton(length):
    """As far as a machine without a GPU can tell; nobody has run it on one."""
    shape = partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
    kept = shape((2, 4, length, 128))
    traced = jax.jit(attend_triton).trace(
        shape((4, 12, 128)), kept, kept, jax.ShapeDtypeStruct((4,), jnp.int32)
    )
    assert "gpu.triton" in traced.lower(lowering_platforms=("cuda",)).as_text()
