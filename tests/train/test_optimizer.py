"""The learning rate at the corners of each schedule, what decays, and AdamW against optax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_stage import AXES, init, loss

from speechlm_jax.errors import UserError
from speechlm_jax.sharding import MeshConfig, make_mesh
from speechlm_jax.train.optimizer import (
    OptimizerConfig,
    check_new,
    decay_mask,
    make_optimizer,
    make_schedule,
)
from speechlm_jax.train.stage import Stage
from speechlm_jax.train.state import make_layout


@pytest.mark.parametrize(
    ("schedule", "middle", "last"),
    [("constant", 1.0, 1.0), ("linear", 0.55, 0.1), ("cosine", 0.55, 0.1), ("wsd", 1.0, 0.1)],
)
def test_schedule_corners(schedule, middle, last):
    config = OptimizerConfig(peak=1.0, final=0.1, warmup_steps=20, schedule=schedule)
    rate = make_schedule(config, 120)
    np.testing.assert_allclose(rate(1), 1 / 20, rtol=1e-6)
    np.testing.assert_allclose(rate(20), 1.0, rtol=1e-6)
    np.testing.assert_allclose(rate(70), middle, rtol=1e-5)
    np.testing.assert_allclose(rate(120), last, rtol=1e-5)


def test_wsd_falls_over_the_last_fifth():
    rate = make_schedule(OptimizerConfig(peak=1.0, warmup_steps=0, schedule="wsd"), 100)
    np.testing.assert_allclose([rate(1), rate(80), rate(90), rate(100)], [1, 1, 0.5, 0], atol=1e-6)


def test_matrices_decay_and_tables_on_request():
    params = {
        "table": jnp.ones((8, 4)),
        "stacked_scale": jnp.ones((3, 4)),
        "stacked_matrix": jnp.ones((3, 4, 4)),
    }
    axes = {
        "table": ("vocab", "embed"),
        "stacked_scale": ("layers", "embed"),
        "stacked_matrix": ("layers", "embed", "mlp"),
    }
    mask = decay_mask(params, axes)
    assert mask == {"table": False, "stacked_scale": False, "stacked_matrix": True}
    assert decay_mask(params, axes, OptimizerConfig(decay_embeddings=True))["table"]


AXES_OF = {
    "table": ("vocab", "embed"),
    "head": ("embed", "vocab"),
    "stack": ("layers", "embed", "mlp"),
    "stacked_scale": ("layers", "embed"),
    "bias": ("vocab",),
}
SHAPES = {
    "table": (10, 8),
    "head": (8, 10),
    "stack": (3, 8, 6),
    "stacked_scale": (3, 8),
    "bias": (10,),
}


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("tables", [False, True])
@pytest.mark.parametrize("head", [False, True])
def test_what_decays_is_what_the_config_says_under_every_rule(name, tables, head):
    """Without a gradient, an update of unit rate is the decay alone."""
    config = OptimizerConfig(
        name, weight_decay=0.5, decay_embeddings=tables, decay_head=head, warmup_steps=0
    )
    params = {key: jnp.ones(shape) for key, shape in SHAPES.items()}
    transform = make_optimizer(config, total_steps=9, axes=AXES_OF).transform
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = transform.update(grads, transform.init(params), params)
    expected = {"table": tables, "head": head, "stack": True}
    for key, update in updates.items():
        np.testing.assert_allclose(update, 0.5 * expected.get(key, False), atol=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_the_last_update_has_exactly_the_final_rate(schedule):
    random = np.random.default_rng(0)
    for total in (1, 2, 3, 10, *random.integers(4, 10**6, size=12).tolist()):
        for warmup in {0, total - 1, int(random.integers(total))}:
            config = OptimizerConfig(
                peak=float(random.uniform(1e-5, 1)), final=float(random.uniform(0, 1e-2)),
                warmup_steps=warmup, schedule=schedule,
                decay_fraction=float(random.uniform(1e-3, 1)),
            )  # fmt: skip
            rate = make_schedule(config, total)
            assert float(rate(total)) == np.float32(config.final), config
            if warmup > 1:
                np.testing.assert_allclose(rate(warmup), config.peak, rtol=1e-5)


def test_updates_are_those_of_optax_adamw():
    config = OptimizerConfig(peak=1e-2, warmup_steps=3, schedule="linear")
    ours = make_optimizer(config, total_steps=10, axes=AXES)
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            lambda count: ours.learning_rate(count + 1),
            b1=0.9,
            b2=0.95,
            weight_decay=0.1,
            mask=lambda params: decay_mask(params, AXES),
        ),
    )
    mine, _ = init(jax.random.key(0))
    yours = mine
    my_state, your_state = ours.transform.init(mine), theirs.init(yours)

    @jax.jit
    def both(step, mine, my_state, yours, your_state):
        grads = jax.tree.map(lambda p: jnp.sin(step * p), mine)
        updates, my_state = ours.transform.update(grads, my_state, mine)
        mine = jax.tree.map(lambda p, u: p - ours.learning_rate(step) * u, mine, updates)
        updates, your_state = theirs.update(grads, your_state, yours)
        return mine, my_state, optax.apply_updates(yours, updates), your_state

    for step in range(1, 6):
        mine, my_state, yours, your_state = both(step, mine, my_state, yours, your_state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), mine, yours)


def test_muon_turns_each_layers_matrix_by_itself_and_leaves_tables_to_adamw():
    axes = {"stack": ("layers", "embed", "mlp"), "table": ("vocab", "embed"), "scale": ("embed",)}
    shapes = {"stack": (3, 8, 6), "table": (10, 8), "scale": (8,)}
    grads = {
        name: jax.random.normal(jax.random.key(i), shape)
        for i, (name, shape) in enumerate(shapes.items())
    }
    params = jax.tree.map(jnp.zeros_like, grads)
    plain = {"weight_decay": 0.0, "clip_norm": None, "warmup_steps": 0}
    ours = make_optimizer(OptimizerConfig("muon", **plain), total_steps=9, axes=axes).transform
    updates, _ = ours.update(grads, ours.init(params), params)
    # Newton-Schulz brings singular values near 1; the scale makes the RMS AdamW's usual 0.2.
    values = jnp.linalg.svd(updates["stack"], compute_uv=False) / (0.2 * np.sqrt(8))
    assert jnp.all((values > 0.6) & (values < 1.3))
    alone = optax.contrib.scale_by_muon()
    for layer in range(3):
        matrix = grads["stack"][layer]
        expected, _ = alone.update(matrix, alone.init(matrix))
        np.testing.assert_allclose(
            updates["stack"][layer], expected * 0.2 * np.sqrt(8), rtol=1e-4, atol=1e-6
        )
    adam = optax.scale_by_adam(b2=0.95, nesterov=True)
    rest = {name: grads[name] for name in ("table", "scale")}
    expected, _ = adam.update(rest, adam.init(rest))
    for name, update in expected.items():
        np.testing.assert_allclose(updates[name], update, rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moments_lie_where_their_parameters_lie(name):
    config = OptimizerConfig(name, warmup_steps=0)
    optimizer = make_optimizer(config, total_steps=9, axes=AXES)
    stage = Stage("toy", init, AXES, loss, batches=lambda seen: iter(()))
    mesh = make_mesh(MeshConfig(fsdp=2), devices=jax.devices()[:2])
    layout = make_layout(stage, optimizer, mesh=mesh)
    spread = [s.spec for s in jax.tree.leaves(layout.shardings.params)]
    moments = [s.spec for s in jax.tree.leaves(layout.shardings.opt_state)]
    for spec in spread:
        assert spec in moments


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("warmup_steps", {"warmup_steps": 11}),
        ("warmup_steps", {"warmup_steps": -1}),
        ("weight_decay", {"weight_decay": -0.1}),
        ("b2", {"b2": 1.0}),
        ("eps", {"eps": float("nan")}),
        ("peak", {"peak": 0.0}),
        ("decay_fraction", {"decay_fraction": 0.0}),
        ("clip_norm", {"clip_norm": -1.0}),
    ],
)
def test_numbers_out_of_range_are_named(field, change):
    with pytest.raises(UserError, match=field):
        make_optimizer(OptimizerConfig(**{"warmup_steps": 0, **change}), total_steps=10)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd", "constant"])
def test_new_runs_alone_are_refused_a_warmup_that_takes_every_step(schedule):
    config = OptimizerConfig(warmup_steps=10, schedule=schedule, peak=0.5)
    rate = make_optimizer(config, total_steps=10).learning_rate  # earlier versions began such runs
    np.testing.assert_allclose([rate(n) for n in (1, 10)], [0.05, 0.5], rtol=1e-6)
    if schedule == "constant":
        check_new(config, 10)
    else:
        with pytest.raises(UserError, match="warmup_steps: 10 .* give at most 9"):
            check_new(config, 10)
