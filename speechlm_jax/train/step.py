"""One update: sums over micro batches and devices, divided once."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from speechlm_jax.arrays import Array, Float, Int, Key, PyTree
from speechlm_jax.train.optimizer import Optimizer
from speechlm_jax.train.stage import Metrics, Stage
from speechlm_jax.train.state import StateLayout, TrainState

TrainStep = Callable[[TrainState, Mapping[str, Array], Key[Array, ""]], tuple[TrainState, Metrics]]


class _Sums(NamedTuple):
    grads: PyTree
    loss: Float[Array, ""]
    weight: Float[Array, ""]
    metrics: dict[str, tuple[Array, Array]]


def make_train_step(
    stage: Stage, optimizer: Optimizer, layout: StateLayout, *, num_microbatches: int = 1
) -> TrainStep:
    """Compiles (state, batch, run key) to (state, metrics); the state that goes in is given up.

    The batch's leading axis holds the rows of all hosts. Metrics are (numerator, denominator): the
    stage's own, and `loss`, `grad_norm`, `learning_rate`, `skipped_steps`. An update without a
    finite gradient is skipped: the step counts; parameters, variables and moments stay.
    """

    def train_step(
        state: TrainState, batch: Mapping[str, Array], key: Key[Array, ""]
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)
        variables, sums = _accumulate(stage, state, batch, key, num_microbatches)
        weight = jnp.where(sums.weight > 0, sums.weight, 1.0)
        grads = jax.tree.map(lambda grad: grad / weight.astype(grad.dtype), sums.grads)
        grads = jax.lax.with_sharding_constraint(grads, layout.shardings.params)
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.transform.update(grads, state.opt_state, state.params)
        rate = jnp.asarray(optimizer.learning_rate(state.step + 1), jnp.float32)
        params = jax.tree.map(
            lambda param, update: (param - rate * update).astype(param.dtype), state.params, updates
        )
        finite = jnp.isfinite(grad_norm) & jnp.isfinite(sums.loss)
        new = TrainState(state.step + 1, params, variables, opt_state)
        old = TrainState(state.step + 1, state.params, state.variables, state.opt_state)
        # a NaN in one micro batch also spoils the variables, so they are kept back with the rest
        new = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, old)
        one = jnp.ones((), jnp.float32)
        return new, {
            **jax.tree.map(lambda value: jnp.where(finite, value, 0.0), sums.metrics),
            "loss": (jnp.where(finite, sums.loss, 0.0), jnp.where(finite, sums.weight, 0.0)),
            "grad_norm": (jnp.where(finite, grad_norm, 0.0), finite.astype(jnp.float32)),
            "learning_rate": (rate, one),
            "skipped_steps": (1.0 - finite.astype(jnp.float32), one),
        }

    return jax.jit(train_step, donate_argnums=0, out_shardings=(layout.shardings, None))


def _accumulate(
    stage: Stage, state: TrainState, batch: Mapping[str, Array], key: Array, count: int
) -> tuple[PyTree, _Sums]:
    """Sums over `count` micro batches, one after the other; the variables pass through them."""

    def one(variables: PyTree, rows: Mapping[str, Array], index: Int[Array, ""] | int) -> Any:
        def loss(params: PyTree) -> Any:
            out = stage.loss(params, variables, rows, jax.random.fold_in(key, index))
            return out.loss_sum.astype(jnp.float32), out

        (value, out), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        weight = jnp.asarray(out.weight_sum, jnp.float32)
        metrics = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), dict(out.metrics))
        return out.variables, _Sums(grads, value, weight, metrics)

    if count == 1:
        return one(state.variables, batch, 0)
    parts = {name: _split(rows, count) for name, rows in batch.items()}
    first = {name: rows[0] for name, rows in parts.items()}
    shapes = jax.eval_shape(lambda: one(state.variables, first, 0))[1]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(carry: tuple[PyTree, _Sums], part: tuple[Mapping[str, Array], Array]) -> Any:
        variables, sums = carry
        rows, index = part
        variables, new = one(variables, rows, index)
        return (variables, jax.tree.map(jnp.add, sums, new)), None

    carry, _ = jax.lax.scan(add, (state.variables, zeros), (parts, jnp.arange(count)))
    return carry


def _split(rows: Array, count: int) -> Array:
    """[batch, ...] to [count, batch / count, ...]; every device keeps its rows.

    Micro batch i takes rows i, i + count, ...: consecutive rows lie on one device, so a split into
    runs of rows would leave all devices but one idle in each micro batch.
    """
    return rows.reshape(rows.shape[0] // count, count, *rows.shape[1:]).swapaxes(0, 1)
