"""cuDNN's attention without a GPU: what it is told, what is made of its answer, and its program.

In place of cuDNN stands the reference attention, which reads the same offsets and, like cuDNN,
leaves what it likes (here NaN) wherever no document lies, in outputs and gradients.
"""

import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as fused

from speechlm_jax.errors import UserError
from speechlm_jax.nn import cudnn
from speechlm_jax.nn.attention import Layout, attend, visible
from speechlm_jax.nn.cudnn import attend_documents, find_documents
from speechlm_jax.sharding import MeshConfig, make_mesh

find = jax.jit(find_documents, static_argnums=1)


def random_rows(random, rows, length):
    """Documents of 1 position and more, gaps of padding anywhere, rows of nothing but padding."""
    segments = np.zeros((rows, length), np.int32)
    for row in segments:
        place, ids = 0, iter(random.permutation(np.arange(1, 100)))
        while place < length and random.random() > 0.1:
            size = random.integers(1, random.choice([2, 6, length + 1]) + 1)
            row[place : place + size] = next(ids) if random.random() < 0.8 else 0
            place += size
    return segments


def loop(segments):
    """For each row, its documents' first positions and sizes; for each position its document."""
    found, numbers = [], np.full(segments.shape, -1)
    for row, ids in enumerate(segments):
        documents = []
        for place, segment in enumerate(ids):
            if segment == 0:
                continue
            if place == 0 or ids[place - 1] != segment:
                documents.append([place, 0])
            documents[-1][1] += 1
            numbers[row, place] = len(documents) - 1
        found.append(documents)
    return found, numbers


@pytest.mark.parametrize("rows, length, at_once", [(1, 1, 2), (1, 7, 64), (3, 33, 5), (4, 64, 2)])
def test_documents_are_those_of_a_loop(rows, length, at_once):
    random = np.random.default_rng(length)
    for _ in range(10):
        segments = random_rows(random, rows, length)
        found = find(jnp.array(segments), at_once)
        expected, numbers = loop(segments)
        np.testing.assert_array_equal(found.numbers, numbers)
        assert found.starts.shape[1] % at_once == 0
        for row, documents in enumerate(expected):
            rest = [-1] * (found.starts.shape[1] - len(documents))
            assert found.starts[row].tolist() == [start for start, _ in documents] + rest
            assert found.lengths[row].tolist() == [size for _, size in documents] + rest
        assert not found.torn.any()


def test_a_segment_that_comes_again_is_found():
    segments = jnp.array([[1, 2, 1, 0], [1, 0, 1, 2], [2, 1, 1, 0], [0, 5, 0, 7], [0, 0, 0, 0]])
    assert find(segments, 2).torn.tolist() == [True, True, False, False, False]


@jax.custom_vjp
def _poisoned(q, k, v, inside):
    return _reference(q, k, v, inside)


def _reference(q, k, v, inside):
    numbers = jnp.where(inside.any(axis=1), jnp.argmax(inside, axis=1) + 1, 0)
    layout = Layout(numbers, jnp.broadcast_to(jnp.arange(q.shape[1]), numbers.shape))
    full = (x.astype(jnp.float32) for x in (q, k, v))
    out = attend(*full, visible(layout, layout, 1)).astype(q.dtype)
    return jnp.where(numbers[..., None, None] > 0, out, jnp.nan)


def _poisoned_backward(saved, given):
    *qkv, inside = saved
    there = inside.any(axis=1)[..., None, None]
    _, pull = jax.vjp(lambda *qkv: jnp.where(there, _reference(*qkv, inside), 0), *qkv)
    return (*(jnp.where(there, x, jnp.nan) for x in pull(jnp.where(there, given, 0))), None)


_poisoned.defvjp(lambda *given: (_poisoned(*given), given), _poisoned_backward)


def pretended(q, k, v, bias, mask, lengths, kv_lengths, starts, kv_starts, *, scale, mask_type):
    """The function of JAX, with its reading of lengths and starts."""
    assert bias is mask is None and mask_type == fused.MaskType.PADDING_CAUSAL
    assert scale == q.shape[-1] ** -0.5
    assert q.dtype == k.dtype == v.dtype and lengths is kv_lengths and starts is kv_starts
    assert starts.shape[1] == lengths.shape[1] + 1
    first, places = starts[:, :-1, None], jnp.arange(q.shape[1])
    inside = (first >= 0) & (places >= first) & (places < first + lengths[..., None])
    return _poisoned(q, k, v, inside)


@pytest.fixture
def cudnn_here(monkeypatch):
    """A machine with cuDNN, as far as this process can tell."""
    there = SimpleNamespace(
        dot_product_attention=pretended,
        check_compute_capability=lambda least: True,
        MaskType=fused.MaskType,
    )
    monkeypatch.setattr(cudnn, "fused", there)


def packed(seed, *, rows=4, length=32, heads=4, kv_heads=2, dtype=jnp.bfloat16):
    random = np.random.default_rng(seed)
    segments = random_rows(random, rows, length)
    q = random.normal(size=(rows, length, heads, 8))
    k, v = random.normal(size=(2, rows, length, kv_heads, 8))
    weight = random.normal(size=q.shape) * (segments > 0)[..., None, None]
    weight = jnp.array(weight, dtype).astype(jnp.float32)  # its cotangent is not rounded again
    return jnp.array(segments), tuple(jnp.array(x, dtype) for x in (q, k, v)), weight


def value_and_grads(attend_by, qkv, weight):
    def summed(*qkv):
        out = attend_by(*qkv)
        return jnp.sum(out * weight), out

    (_, out), grads = jax.jit(jax.value_and_grad(summed, (0, 1, 2), has_aux=True))(*qkv)
    return out, grads


def agrees_with_the_reference(segments, qkv, weight, found):
    layout = Layout(segments, jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape))
    full = [x.astype(jnp.float32) for x in qkv]
    mask = visible(layout, layout, 1)
    expected, grads = value_and_grads(lambda q, k, v: attend(q, k, v, mask), full, weight)
    real = (np.asarray(segments) > 0)[..., None, None]
    for one, other in zip((found[0], *found[1]), (expected * real, *grads), strict=True):
        one, other = np.asarray(one, np.float32), np.asarray(other)
        np.testing.assert_allclose(one, other, rtol=2**-7, atol=1e-2)
        assert not np.any(np.where(real, 0, one)), "padding gets nothing and gives nothing"


def by_cudnn(segments, at_once):
    documents = find(segments, at_once)
    return partial(attend_documents, documents=documents, at_once=at_once)


@pytest.mark.parametrize("at_once, kv_heads", [(2, 2), (3, 1), (64, 4)])
def test_every_document_is_attended_to_once(cudnn_here, at_once, kv_heads):
    segments, qkv, weight = packed(at_once, kv_heads=kv_heads)
    found = value_and_grads(by_cudnn(segments, at_once), qkv, weight)
    agrees_with_the_reference(segments, qkv, weight, found)


@pytest.mark.parametrize(
    "mesh", [MeshConfig(fsdp=2, tensor=2), MeshConfig(fsdp=1, tensor=4)], ids=str
)
def test_a_mesh_changes_nothing(cudnn_here, mesh):
    segments, qkv, weight = packed(3)
    with jax.set_mesh(make_mesh(mesh)):
        found = value_and_grads(by_cudnn(segments, 3), qkv, weight)
    agrees_with_the_reference(segments, qkv, weight, found)


def test_a_torn_row_is_nan_and_its_neighbours_are_not(cudnn_here):
    segments, qkv, _ = packed(4)
    segments = segments.at[1].set(1).at[1, 5].set(2)
    out = np.asarray(jax.jit(by_cudnn(segments, 64))(*qkv), np.float32)
    assert np.isnan(out[1]).all() and not np.isnan(out[[0, 2, 3]]).any()


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (6, 2)])
def test_cudnn_is_told_where_each_document_begins_in_memory(cudnn_here, heads, kv_heads):
    """The lists as JAX hands them over: all documents of all rows, offsets in numbers."""

    def told(q, k, v, bias, mask, lengths, kv_lengths, starts, kv_starts, **_):
        lists.append(fused._fix_seqlen_offsets(lengths, kv_lengths, starts, kv_starts, q, k))
        strides.append([x.shape[2] * x.shape[3] for x in (q, k)])
        return jnp.zeros_like(q)

    @jax.jit
    def listed(segments, qkv):
        attend_documents(*qkv, find_documents(segments, 64), at_once=64)
        return lists.pop()

    cudnn.fused.dot_product_attention = told
    lists, strides = [], []
    for seed in range(5):
        segments, qkv, _ = packed(seed, heads=heads, kv_heads=kv_heads, length=48)
        lengths, kv_lengths, starts, kv_starts = (
            np.asarray(x).ravel() for x in listed(segments, qkv)
        )
        rows, length = segments.shape
        documents = [
            (row * length + start, size)
            for row, found in enumerate(loop(np.asarray(segments))[0])
            for start, size in found
        ]
        sizes = [size for _, size in documents]
        for found in (lengths, kv_lengths):
            assert found[: len(sizes)].tolist() == sizes and not found[len(sizes) :].any()
        for found, stride in zip((starts, kv_starts), strides[0], strict=True):
            assert found[: len(sizes)].tolist() == [start * stride for start, _ in documents]
            assert (found[len(sizes) :] == rows * length * stride).all()


@pytest.fixture
def hopper(monkeypatch):
    """Lets JAX lower for a GPU that is not there."""
    monkeypatch.setattr(fused, "check_compute_capability", lambda least: True)
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91300)


def lowered(function, *shapes):
    return jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("at_once, calls, heads, kv_heads", [(16, 2, 4, 2), (64, 1, 4, 1)])
def test_it_lowers_for_a_gpu(hopper, at_once, calls, heads, kv_heads):
    q = jax.ShapeDtypeStruct((2, 64, heads, 16), jnp.bfloat16)
    k = v = jax.ShapeDtypeStruct((2, 64, kv_heads, 16), jnp.bfloat16)
    segments = jax.ShapeDtypeStruct((2, 64), jnp.int32)

    def forward(q, k, v, segments):
        return by_cudnn(segments, at_once)(q, k, v)

    def backward(q, k, v, segments):
        return jax.grad(lambda *qkv: jnp.sum(forward(*qkv, segments)), (0, 1, 2))(q, k, v)

    text = lowered(forward, q, k, v, segments)
    assert text.count("stablehlo.custom_call @__cudnn$fmhaSoftmax(") == calls
    lists = rf"tensor<2x{at_once}xi32>, tensor<2x{at_once}xi32>"
    lists += rf", tensor<2x{at_once + 1}xi32>, tensor<2x{at_once + 1}xi32>"
    there = kv_heads if jax.__version_info__ >= cudnn.GROUPS_SINCE else heads
    arrays = f"tensor<2x64x{heads}x16xbf16>" + f", tensor<2x64x{there}x16xbf16>" * 2
    line = next(line for line in text.splitlines() if "fmhaSoftmax(" in line)
    assert f"({arrays}, {lists}) ->" in line
    for setting in (rf"max_seg_per_batch\W+{at_once}\W", r"mask_type\W+PADDING_CAUSAL",
                    r"fmha_scale\W+0\.25\W"):  # fmt: skip
        assert re.search(setting, line.replace("\\22", '"')), setting
    text = lowered(backward, q, k, v, segments)
    assert text.count("stablehlo.custom_call @__cudnn$fmhaSoftmaxBackward(") == calls


def test_a_row_of_an_odd_length_is_one_with_padding_at_its_end(cudnn_here):
    segments, qkv, weight = packed(3, length=31)
    out, grads = value_and_grads(by_cudnn(segments, 3), qkv, weight)
    longer = [jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (*qkv, weight)]
    padded = by_cudnn(jnp.pad(segments, ((0, 0), (0, 1))), 3)
    other, others = value_and_grads(padded, tuple(longer[:3]), longer[3])
    for one, two in zip((out, *grads), (other, *others), strict=True):
        np.testing.assert_array_equal(one, two[:, :31])
        assert not np.any(two[:, 31:])


@pytest.mark.parametrize("length", [1, 33])
def test_rows_of_an_odd_length_are_trained_on(hopper, length):
    q = jax.ShapeDtypeStruct((2, length, 4, 16), jnp.bfloat16)
    segments = jax.ShapeDtypeStruct((2, length), jnp.int32)

    def backward(q, k, v, segments):
        return jax.grad(lambda *qkv: jnp.sum(by_cudnn(segments, 64)(*qkv)), (0, 1, 2))(q, k, v)

    text = lowered(backward, q, q, q, segments)
    assert "stablehlo.custom_call @__cudnn$fmhaSoftmaxBackward(" in text
    assert f"-> tensor<2x{length}x4x16xbf16>" in text


@pytest.mark.parametrize(
    "dtype, head_dim, why",
    [
        ("float32", 64, "takes bfloat16 and float16, not float32"),
        ("bfloat16", 12, "takes a head_dim of 8, 16, ... 256, not 12"),
        ("bfloat16", 264, "takes a head_dim of 8, 16, ... 256, not 264"),
        ("bfloat16", 64, None),
        ("float16", 256, None),
    ],
)
def test_what_cudnn_cannot_do_is_said_in_a_line(cudnn_here, dtype, head_dim, why):
    reason = cudnn.refusal(dtype, head_dim)
    assert reason == why if why is None else (why in reason and "\n" not in reason)


def test_a_machine_without_it_is_refused(monkeypatch):
    segments, qkv, _ = packed(0)
    with pytest.raises(UserError, match="attention=cudnn: .* needs an NVIDIA GPU of Hopper's kind"):
        by_cudnn(segments, 64)(*qkv)
    monkeypatch.setattr(cudnn, "fused", None)
    with pytest.raises(UserError, match=f"JAX {jax.__version__} has no cuDNN attention"):
        by_cudnn(segments, 64)(*qkv)


@pytest.mark.parametrize(
    "mesh, message",
    [
        (MeshConfig(fsdp=2, context=2), "mesh.context: .* does not split the length"),
        (MeshConfig(fsdp=1, tensor=4), "mesh.tensor: 6 heads do not divide over 4 devices"),
    ],
    ids=str,
)
def test_a_mesh_that_it_cannot_serve_is_refused(cudnn_here, mesh, message):
    segments, qkv, _ = packed(0, heads=6)
    with jax.set_mesh(make_mesh(mesh)), pytest.raises(UserError, match=message):
        by_cudnn(segments, 64)(*qkv)


def test_more_than_its_offsets_can_address_is_refused(cudnn_here):
    q, k = (jax.ShapeDtypeStruct((64, 8192, heads, 128), jnp.bfloat16) for heads in (32, 8))
    segments = jax.ShapeDtypeStruct((64, 8192), jnp.int32)
    with pytest.raises(UserError, match="64 rows of 8192 positions are more than cuDNN can"):
        jax.eval_shape(lambda q, k, segments: by_cudnn(segments, 64)(q, k, k), q, k, segments)
