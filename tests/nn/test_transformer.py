"""The stack: who influences whom by gradient, a cache that changes nothing, remat and unroll."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechlm_jax.errors import UserError
from speechlm_jax.nn.attention import Layout, visible, whole
from speechlm_jax.nn.param import Functional
from speechlm_jax.nn.transformer import (
    Context,
    ExecutionConfig,
    Transformer,
    TransformerConfig,
)

CONFIG = TransformerConfig(num_layers=2, embed=8, heads=2, kv_heads=1, head_dim=4, mlp=12)
LENGTH = 8


def functional(**changes):
    return Functional(lambda rngs: Transformer(dataclasses.replace(CONFIG, **changes), rngs=rngs))


@pytest.fixture(scope="module")
def params(draw):
    return draw(functional())


@pytest.fixture(scope="module")
def make(params):
    """The stack with one field or another changed; parameters stay the same."""
    return lambda **changes: functional(**changes).bind(params)


def inputs(length=LENGTH, batch=2, seed=1):
    return jax.random.normal(jax.random.key(seed), (batch, length, CONFIG.embed))


def influence(stack, layout):
    """[to, from]: whether the output at `to` moves with the input at `from`, in row 0."""

    def outputs(x):
        return jnp.sum(stack(x, layout)[0] ** 2, axis=-1)

    gradient = jax.jit(jax.jacrev(outputs))(inputs(batch=layout.segments.shape[0]))
    return np.asarray(jnp.abs(gradient).sum((-1, 1)) > 0)


@pytest.mark.parametrize("block, rope_theta", [(1, 10_000.0), (4, None), (None, 10_000.0)])
def test_influence_is_exactly_what_the_rule_allows(make, block, rope_theta):
    layout = whole(jnp.array([LENGTH]), LENGTH)
    moved = influence(make(block=block, rope_theta=rope_theta), layout)
    np.testing.assert_array_equal(moved, visible(layout, layout, block)[0])


def test_documents_of_a_row_do_not_influence_each_other(make):
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 2, 0]])
    layout = Layout(segments, jnp.array([[0, 1, 2, 0, 1, 2, 3, 0]]))
    moved = influence(make(block=None), layout)
    np.testing.assert_array_equal(moved[:7, :7], segments[0, :7, None] == segments[0, None, :7])
    assert not moved[:7, 7].any()


@pytest.mark.parametrize("block, parts", [(1, (3, 1, 4)), (4, (4, 4))])
def test_reading_in_parts_equals_reading_at_once(make, block, parts):
    stack, x = make(block=block), inputs()
    layout = whole(jnp.array([LENGTH, LENGTH]), LENGTH)

    @jax.jit
    def in_parts(x):
        cache = stack.config.empty_cache(rows=2, length=LENGTH + 3)
        got, first = [], 0
        for size in parts:
            now = slice(first, first + size)
            y, cache = stack.extend(x[:, now], cache)
            got.append(y)
            first += size
        return jnp.concatenate(got, axis=1), cache.filled

    got, filled = in_parts(x)
    np.testing.assert_allclose(got, jax.jit(stack)(x, layout), atol=1e-5)
    assert filled.tolist() == [LENGTH, LENGTH]


def test_padding_in_the_cache_is_never_seen(make):
    """Two prompts of 3 and 5 positions, both padded to 5, then one more position each."""
    stack, x = make(), inputs(6)
    lengths = jnp.array([3, 5])

    @jax.jit
    def after_prompts(x):
        _, cache = stack.extend(x[:, :5], stack.config.empty_cache(rows=2, length=6), new=lengths)
        return stack.extend(x[:, 5:], cache)[0][:, 0]

    short = jnp.concatenate([x[:, :3], x[:, 5:], x[:, :2]], axis=1)  # what pads it is not read
    read = jax.jit(stack)
    got = after_prompts(x)
    np.testing.assert_allclose(got[0], read(short, whole(jnp.array([4, 4]), 6))[0, 3], atol=1e-5)
    np.testing.assert_allclose(got[1], read(x, whole(jnp.array([6, 6]), 6))[1, 5], atol=1e-5)


def test_a_context_is_read_through_its_mask(draw):
    crossed = functional(cross_attention=True)
    stack, x = crossed.bind(draw(crossed)), inputs()
    layout = whole(jnp.array([LENGTH, LENGTH]), LENGTH)
    states = inputs(3, seed=2)
    mask = jnp.ones((2, LENGTH, 3), bool).at[:, :, 2].set(False)
    output = jax.jit(lambda states: stack(x, layout, Context(states, mask)))
    np.testing.assert_array_equal(output(states), output(states.at[:, 2].add(1.0)))
    assert not np.allclose(output(states), output(states.at[:, 1].add(1.0)))


def test_a_context_that_is_read_once_changes_nothing(draw):
    """Position by position, of a stack as Whisper's, with biases everywhere."""
    whisper = {"norm": "layer", "mlp_kind": "gelu", "biases": ("q", "v", "o", "up", "down")}
    crossed = functional(cross_attention=True, rope_theta=None, **whisper)
    drawn = draw(crossed)
    assert {"bias", "kernel"} == set(drawn["blocks"]["cross"]["o"]) == set(
        drawn["blocks"]["mlp"]["up"]
    ) and "bias" not in drawn["blocks"]["cross"]["k"]
    stack, x, states = crossed.bind(drawn), inputs(), inputs(3, seed=2)
    mask = jnp.ones((2, 1, 3), bool).at[1, :, 2].set(False)
    layout = whole(jnp.array([LENGTH, LENGTH]), LENGTH)
    told = jax.jit(stack)(x, layout, Context(states, mask))

    extend = jax.jit(lambda x, cache, read: stack.extend(x, cache, read=read))
    cache = stack.config.empty_cache(rows=2, length=LENGTH)
    read, got = stack.read(Context(states, mask)), []
    for place in range(LENGTH):
        y, cache = extend(x[:, place : place + 1], cache, read)
        got.append(y)
    np.testing.assert_allclose(np.concatenate(got, axis=1), told, atol=1e-5)


def test_positions_that_are_not_seen_influence_nothing_but_read(make):
    layout = whole(jnp.array([LENGTH]), LENGTH)
    seen = jnp.arange(LENGTH)[None] < 5
    moved = influence(make(block=None, rope_theta=None), layout._replace(seen=seen))
    np.testing.assert_array_equal(moved, seen[0] | np.eye(LENGTH, dtype=bool))


@pytest.fixture(scope="module")
def value_and_grads(params):
    x, layout = inputs(), whole(jnp.array([LENGTH, LENGTH]), LENGTH)

    def run(**changes):
        def loss(params):
            return jnp.sum(functional(**changes).bind(params)(x, layout) ** 2)

        return jax.jit(jax.value_and_grad(loss))(params)

    return run


@pytest.fixture(scope="module")
def plain(value_and_grads):
    return value_and_grads()


@pytest.mark.parametrize(
    "execution",
    [
        ExecutionConfig(remat="full", unroll=2),
        ExecutionConfig(remat="dots"),
        ExecutionConfig(remat="full", saved=("block_input", "qkv"), offloaded=("mlp_hidden",)),
    ],
    ids=str,
)
def test_remat_and_unroll_change_nothing(value_and_grads, plain, execution):
    other = value_and_grads(execution=execution)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, other)


def test_a_value_that_no_block_has_is_refused():
    with pytest.raises(UserError, match="'mlp' is none of block_input, qkv, attended, mlp_hidden"):
        ExecutionConfig(remat="full", saved=("mlp",))
    with pytest.raises(UserError, match="execution.documents_at_once: 1; give 2 or more"):
        ExecutionConfig(documents_at_once=1)


@pytest.mark.parametrize("kernel", ["splash", "blockwise"])
def test_a_stack_is_the_same_with_every_kernel(params, kernel):
    """Two documents and padding in a row."""
    segments = jnp.array([[1] * 60 + [2] * 50 + [0] * 18])
    layout = Layout(segments, jnp.array([[*range(60), *range(50), *range(18)]]))
    x = jnp.array(np.random.default_rng(0).normal(size=(1, 128, 8)), jnp.float32)
    one, other = (
        functional(execution=ExecutionConfig(attention=name)).bind(params)(x, layout)[:, :110]
        for name in ("reference", kernel)
    )
    np.testing.assert_allclose(other, one, atol=1e-4)
