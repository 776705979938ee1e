"""One update: equal on one device and four, in one part and several; skipped if not finite."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest
from toy_stage import assert_same, batch_of, init, loss, make_stage

from speechlm_jax.errors import UserError
from speechlm_jax.sharding import MeshConfig, make_mesh, to_global
from speechlm_jax.train.optimizer import OptimizerConfig, make_optimizer
from speechlm_jax.train.state import StateConfig, TrainState, init_state, make_layout
from speechlm_jax.train.step import NORMS_BEFORE_SPIKES, make_train_step
from speechlm_jax.train.trainable import part

OPTIMIZER = OptimizerConfig(peak=1e-2, warmup_steps=0, schedule="constant")
ALL = StateConfig()
FOUR = MeshConfig(fsdp=2, tensor=2)


class Trained(NamedTuple):
    """The last state on its devices; all states (a fresh one first) and metrics on the host."""

    state: TrainState
    states: list[TrainState]
    metrics: list[dict]


def train(
    batches, *, mesh_config=FOUR, num_devices=4, num_microbatches=1, stage=None,
    config=ALL, optimizer=OPTIMIZER,
):  # fmt: skip
    """Runs one step a batch."""
    stage = stage or make_stage()
    mesh = make_mesh(mesh_config, devices=jax.devices()[:num_devices])
    axes = stage.axes and part(stage.axes, config.trainable)
    optimizer = make_optimizer(optimizer, total_steps=100, axes=axes)
    layout = make_layout(stage, optimizer, mesh=mesh, config=config)
    with jax.set_mesh(mesh):
        state = init_state(stage, optimizer, layout, seed=0)
        step = make_train_step(stage, optimizer, layout, num_microbatches=num_microbatches)
        states, metrics = [jax.device_get(state)], []
        for batch in batches:
            state, figures = step(state, to_global(batch, mesh=mesh), jax.random.key(1))
            states.append(jax.device_get(state))
            metrics.append(jax.device_get(figures))
    return Trained(state, states, metrics)


def assert_close(first, second):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        jax.device_get(first),
        jax.device_get(second),
    )


@pytest.fixture(scope="module")
def plain():
    return train([batch_of(0), batch_of(1)], mesh_config=MeshConfig(), num_devices=1)


@pytest.mark.parametrize("mesh_config", [FOUR, MeshConfig(replica=2, fsdp=2)])
def test_sharded_equals_unsharded(plain, mesh_config):
    trained = train([batch_of(0), batch_of(1)], mesh_config=mesh_config)
    assert_close(trained.states, plain.states)
    assert_close(trained.metrics, plain.metrics)


def test_parameters_and_moments_are_really_split():
    state = train([batch_of(0)]).state
    up, moment = state.params["up"], optax.tree_utils.tree_get(state.opt_state, "mu")["up"]
    assert up.sharding.shard_shape(up.shape) == moment.sharding.shard_shape(up.shape) == (4, 8)


@pytest.mark.parametrize("num_microbatches", [2, 4])
def test_accumulation_equals_one_big_batch(plain, num_microbatches):
    """The weights are ragged (0 to 3 a row), so that a mean of means would fail."""
    trained = train([batch_of(0), batch_of(1)], num_microbatches=num_microbatches)
    assert_close(trained.states, plain.states)
    assert_close(trained.metrics, plain.metrics)


def test_what_is_drawn_for_the_whole_batch_does_not_depend_on_the_split():
    def prepare(params, variables, batch, key):
        return {"x": batch["x"] + jax.random.normal(key, batch["x"].shape)}

    drawn = make_stage(prepare=prepare)
    whole, split = (train([batch_of(0)], stage=drawn, num_microbatches=n) for n in (1, 4))
    assert_close(split.states, whole.states)
    without = train([batch_of(0)]).states[1]
    assert np.abs(whole.states[1].params["up"] - without.params["up"]).max() > 1e-3


def test_variables_of_a_stage_that_does_not_move_them_stay():
    before, after = train([batch_of(0)], stage=make_stage(finish=None)).states
    assert_same(before.variables, after.variables)


def test_gradient_is_that_of_the_weighted_mean(plain):
    params, variables = init(jax.random.key(0))
    batch = batch_of(0)

    def mean(params):
        out = loss(params, variables, batch, jax.random.key(0))
        return out.loss_sum / out.weight_sum

    value, grads = jax.value_and_grad(mean)(params)
    norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(jax.device_get(grads))))
    first = plain.metrics[0]
    np.testing.assert_allclose(first["loss"][0] / first["loss"][1], value, rtol=1e-5)
    np.testing.assert_allclose(first["grad_norm"][0], norm, rtol=1e-5)


@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_an_update_without_a_finite_gradient_is_skipped(num_microbatches):
    bad = batch_of(1)
    bad["x"][3, 2] = np.nan
    trained = train([batch_of(0), bad], num_microbatches=num_microbatches)
    _, before, after = trained.states
    figures = trained.metrics[1]
    assert int(after.step) == 2 and figures["skipped_steps"][0] == 1
    for name in ("params", "variables", "opt_state"):
        assert_same(getattr(before, name), getattr(after, name))
    assert all(np.isfinite(value) for pair in figures.values() for value in pair)


def test_a_batch_without_weight_changes_nothing_but_what_decays():
    empty = batch_of(1)
    empty["weight"][:] = 0
    metrics = train([empty]).metrics
    assert metrics[0]["skipped_steps"][0] == 0 and metrics[0]["grad_norm"][0] == 0


def test_a_stage_without_axes_is_never_split():
    state = train([batch_of(0)], stage=make_stage(axes=None), mesh_config=MeshConfig()).state
    up = state.params["up"]
    assert up.sharding.shard_shape(up.shape) == up.shape


def test_only_what_is_trainable_has_gradients_and_moments_and_changes():
    free = dataclasses.replace(OPTIMIZER, clip_norm=None)
    whole = train([batch_of(0)], optimizer=free)
    trained = train([batch_of(0)], optimizer=free, config=StateConfig(trainable=("u*",)))
    before, after = trained.states
    np.testing.assert_allclose(after.params["up"], whole.states[1].params["up"], rtol=1e-5)
    for name in ("norms", "down"):
        assert_same(before.params[name], after.params[name])
    assert optax.tree_utils.tree_get(after.opt_state, "mu").keys() == {"up"}
    assert trained.metrics[0]["grad_norm"][0] < whole.metrics[0]["grad_norm"][0]
    assert trained.state.params["up"].sharding == whole.state.params["up"].sharding


def test_the_average_is_that_of_the_parameters():
    config = StateConfig(ema_decay=0.75)
    trained = train([batch_of(i) for i in range(3)], config=config)
    mean = trained.states[0].params["up"]
    for state in trained.states[1:]:
        mean = 0.75 * mean + 0.25 * state.params["up"]
    np.testing.assert_allclose(trained.state.averaged["up"], mean, rtol=1e-5)
    assert trained.state.averaged["up"].sharding == trained.state.params["up"].sharding
    assert train([batch_of(0)]).states[1].averaged["up"] is not None


def test_a_spike_is_skipped_and_forgotten():
    usual = [batch_of(i) for i in range(NORMS_BEFORE_SPIKES)]
    wild = batch_of(99, noise=1e4)
    trained = train([*usual, wild, batch_of(100)], config=StateConfig(skip_above=5.0))
    *_, before, after, last = trained.states
    figures = trained.metrics[-2]
    assert figures["grad_norm"][0] > 5 * trained.metrics[-3]["grad_norm"][0]
    assert figures["spiked_steps"][0] == figures["skipped_steps"][0] == 1
    for name in ("params", "variables", "opt_state", "extras"):
        assert_same(getattr(before, name), getattr(after, name))
    assert trained.metrics[-1]["skipped_steps"][0] == 0
    assert not np.array_equal(after.params["up"], last.params["up"])
    early = train([batch_of(0), wild], config=StateConfig(skip_above=5.0))
    assert early.metrics[1]["spiked_steps"][0] == 0, "too few norms to know"


@pytest.mark.parametrize("wrong", [{"ema_decay": 1.0}, {"skip_above": 0.5}], ids=str)
def test_a_setting_out_of_range_is_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        StateConfig(**wrong)
