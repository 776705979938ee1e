"""One update: sums over micro batches and devices, divided once."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from speechlm_jax.arrays import Array, Float, Int, Key, PyTree
from speechlm_jax.train.optimizer import Optimizer
from speechlm_jax.train.stage import Metrics, Stage
from speechlm_jax.train.state import StateConfig, StateLayout, TrainState
from speechlm_jax.train.trainable import overlay, part

NORMS_BEFORE_SPIKES = 20  # updates before a norm can count as a spike
NORM_RATE = 0.02  # of the running mean of norms: about the last 50 updates
# Folded into the step's key for `Stage.prepare`; micro batches count from 0.
WHOLE_BATCH = 2**32 - 1
TrainStep = Callable[[TrainState, Mapping[str, Array], Key[Array, ""]], tuple[TrainState, Metrics]]


class _Sums(NamedTuple):
    grads: PyTree
    loss: Float[Array, ""]
    weight: Float[Array, ""]
    metrics: dict[str, tuple[Array, Array]]
    statistics: PyTree


def make_train_step(
    stage: Stage, optimizer: Optimizer, layout: StateLayout, *, num_microbatches: int = 1
) -> TrainStep:
    """Returns the jitted step from (state, batch, run key) to (state, metrics).

    It donates the given state. The batch's leading axis holds the rows of all hosts. Metrics are
    (numerator, denominator): the stage's own, and `loss`, `grad_norm`, `param_norm`,
    `learning_rate`, `skipped_steps`, `spiked_steps`. An update is skipped if its gradient or loss
    is not finite or, with `skip_above`, if its gradient is far larger than recent ones: the step
    counts; parameters, variables and moments stay.
    """
    config = layout.config

    def train_step(
        state: TrainState, batch: Mapping[str, Array], key: Key[Array, ""]
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)
        sums = _accumulate(stage, state, batch, key, num_microbatches, layout)
        variables = state.variables
        if stage.finish is not None:
            variables = stage.finish(variables, sums.statistics)
        weight = jnp.where(sums.weight > 0, sums.weight, 1.0)
        grads = jax.tree.map(lambda grad: grad / weight.astype(grad.dtype), sums.grads)
        grad_norm = optax.tree.norm(grads)
        trained = part(state.params, config.trainable)
        updates, opt_state = optimizer.transform.update(grads, state.opt_state, trained)
        rate = jnp.asarray(optimizer.learning_rate(state.step + 1), jnp.float32)
        trained = jax.tree.map(
            lambda param, update: (param - rate * update).astype(param.dtype), trained, updates
        )
        params = overlay(state.params, trained)
        finite = jnp.isfinite(grad_norm) & jnp.isfinite(sums.loss)
        spiked = finite & _spiked(state, config, grad_norm)
        good = finite & ~spiked
        extras = _extras(state, config, params, grad_norm)
        new = TrainState(state.step + 1, params, variables, opt_state, extras)
        old = dataclasses.replace(state, step=state.step + 1)
        # a NaN also spoils the variables, so they are kept back with the rest
        new = jax.tree.map(lambda after, before: jnp.where(good, after, before), new, old)
        one = jnp.ones((), jnp.float32)
        return new, {
            **jax.tree.map(lambda value: jnp.where(finite, value, 0.0), sums.metrics),
            "loss": (jnp.where(finite, sums.loss, 0.0), jnp.where(finite, sums.weight, 0.0)),
            "grad_norm": (jnp.where(finite, grad_norm, 0.0), finite.astype(jnp.float32)),
            "param_norm": (optax.tree.norm(new.params), one),
            "learning_rate": (rate, one),
            "skipped_steps": (1.0 - good.astype(jnp.float32), one),
            "spiked_steps": (spiked.astype(jnp.float32), one),
        }

    return jax.jit(train_step, donate_argnums=0, out_shardings=(layout.shardings, None))


def _spiked(state: TrainState, config: StateConfig, grad_norm: Array) -> Array:
    if not config.skip_above:
        return jnp.zeros((), bool)
    norms = state.extras["norms"]
    return (norms["count"] >= NORMS_BEFORE_SPIKES) & (grad_norm > config.skip_above * norms["mean"])


def _extras(
    state: TrainState, config: StateConfig, params: PyTree, grad_norm: Array
) -> dict[str, PyTree]:
    """Returns the extras after a step that is not skipped."""
    extras = dict(state.extras)
    if config.ema_decay:
        rate = 1.0 - config.ema_decay
        extras["ema"] = jax.tree.map(
            lambda mean, x: mean + rate * (x - mean), extras["ema"], params
        )
    if config.skip_above:
        norms = extras["norms"]
        count = norms["count"] + 1
        rate = jnp.maximum(1.0 / count, NORM_RATE)
        extras["norms"] = {
            "mean": norms["mean"] + rate * (grad_norm - norms["mean"]),
            "count": count,
        }
    return extras


def _accumulate(
    stage: Stage,
    state: TrainState,
    batch: Mapping[str, Array],
    key: Array,
    count: int,
    layout: StateLayout,
) -> _Sums:
    """Returns the sums over `count` micro batches, one after the other.

    Each gradient is sharded like its parameter, and so is the sum of gradients.
    """
    trainable = layout.config.trainable
    shardings = part(layout.shardings.params, trainable)
    if stage.prepare is not None:
        drawing = jax.random.fold_in(key, WHOLE_BATCH)
        batch = {**batch, **stage.prepare(state.params, state.variables, batch, drawing)}

    def one(rows: Mapping[str, Array], index: Int[Array, ""] | int) -> _Sums:
        def loss(trained: PyTree) -> Any:
            params = overlay(state.params, trained)
            out = stage.loss(params, state.variables, rows, jax.random.fold_in(key, index))
            return out.loss_sum.astype(jnp.float32), out

        (value, out), grads = jax.value_and_grad(loss, has_aux=True)(part(state.params, trainable))
        grads = jax.lax.with_sharding_constraint(grads, shardings)
        weight = jnp.asarray(out.weight_sum, jnp.float32)
        metrics = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), dict(out.metrics))
        return _Sums(grads, value, weight, metrics, out.statistics)

    if count == 1:
        return one(batch, 0)
    parts = {name: split_rows(rows, count) for name, rows in batch.items()}
    first = {name: rows[0] for name, rows in parts.items()}
    shapes = jax.eval_shape(lambda: one(first, 0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    zeros = zeros._replace(grads=jax.lax.with_sharding_constraint(zeros.grads, shardings))

    def add(sums: _Sums, part: tuple[Mapping[str, Array], Array]) -> tuple[_Sums, None]:
        return jax.tree.map(jnp.add, sums, one(*part)), None

    sums, _ = jax.lax.scan(add, zeros, (parts, jnp.arange(count)))
    return sums


def split_rows(rows: Array, count: int) -> Array:
    """Splits [batch, ...] into [count, batch / count, ...]; every device keeps its rows.

    Micro batch i takes rows i, i + count, ...: consecutive rows lie on one device, so a split into
    contiguous blocks would leave all devices but one idle in each micro batch.
    """
    return rows.reshape(rows.shape[0] // count, count, *rows.shape[1:]).swapaxes(0, 1)
