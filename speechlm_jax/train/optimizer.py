"""The optimizer: AdamW or Muon, with a learning rate that is a function of the step alone."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from speechlm_jax import config as configs
from speechlm_jax.arrays import PyTree
from speechlm_jax.errors import UserError

# Axes of tables that are looked up rather than multiplied; decay would shrink rare rows to nothing.
TABLE_AXES = frozenset({"vocab", "codebook"})
# Root mean square of Muon's updates: that of AdamW's, so that both take the same learning rates
# (Liu et al. 2025, section 2.2).
MUON_RMS = 0.2


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An update rule and its learning rate.

    Attributes:
      name: "muon" uses Muon (Jordan 2024; momentum 0.95) for matrices inside blocks, and AdamW with
        Nesterov momentum for tables, heads, norms, biases and convolutions; `b1` and `b2` then
        apply to the AdamW part alone.
      peak: learning rate after the warm-up.
      final: learning rate of the last step; "constant" stays at `peak` and ignores it.
      warmup_steps: length of the linear warm-up, whose step n uses peak * n / warmup_steps.
      schedule: learning rate after the warm-up; "wsd" (warm-up, stable, decay) holds `peak` and
        falls linearly over the last `decay_fraction` of the run, or the part of it that the warm-up
        leaves; the others ignore `decay_fraction`.
      decay_fraction: fraction of the run in which "wsd" falls.
      b1: decay rate of the mean of gradients.
      b2: decay rate of the mean of squared gradients.
      eps: term added to the root of that mean before the division.
      weight_decay: decay of matrices; norms and biases never decay, convolutions not under "muon".
      decay_embeddings: true to decay tables that are looked up; it shrinks rare rows to nothing.
      decay_head: true to decay output layers over a vocabulary that are not such tables: they are
        multiplied like other matrices. Megatron-LM (GLM, Qwen) and OLMo decay them, MaxText decays
        everything. Runs older than this field do not decay them.
      clip_norm: largest norm of the whole gradient; None disables clipping.
    """

    name: Literal["adamw", "muon"] = "adamw"
    peak: float = 1e-3
    final: float = 0.0
    warmup_steps: int = 100
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    decay_fraction: float = 0.2
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_embeddings: bool = False
    clip_norm: float | None = 1.0
    decay_head: bool = configs.added(True, before=False)

    def __post_init__(self) -> None:
        configs.at_least(self, 0, "final", "warmup_steps", "eps", "weight_decay")
        configs.at_least(self, 0, "b1", "b2", most=math.nextafter(1, 0))
        configs.above_0(self, "peak", "clip_norm")
        configs.above_0(self, "decay_fraction", most=1)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An update rule and its learning rate.

    The step applies the rate, not `transform`, so that a skipped update does not shift the schedule
    and a resumed run needs only its step.

    Attributes:
      transform: turns gradients into updates of unit learning rate, to be subtracted.
      learning_rate: returns the rate of update n = 1, 2, ... of the run.
    """

    transform: optax.GradientTransformation
    learning_rate: optax.Schedule


def make_optimizer(config: OptimizerConfig, *, total_steps: int, axes: PyTree = None) -> Optimizer:
    """Builds the optimizer of a run of `total_steps` updates.

    Args:
      axes: the parameters' logical axes (see `Stage.axes`): a stacked layer axis does not count
        as a dimension when matrices are told from vectors.

    Raises:
      UserError: the warm-up is longer than the run.
    """
    _check(config, total_steps)
    clip = optax.identity()
    if config.clip_norm is not None:
        clip = optax.clip_by_global_norm(config.clip_norm)
    rules = {"adamw": _adamw, "muon": _muon}[config.name](config, axes)
    return Optimizer(optax.chain(clip, *rules), make_schedule(config, total_steps))


# Keep the state of each rule at its place in the chain, or older checkpoints cannot be read.
def _adamw(config: OptimizerConfig, axes: PyTree) -> list[optax.GradientTransformation]:
    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    mask = partial(decay_mask, axes=axes, config=config)
    return [optax.chain(adam, optax.add_decayed_weights(config.weight_decay, mask=mask))]


def _muon(config: OptimizerConfig, axes: PyTree) -> list[optax.GradientTransformation]:
    rule = muon(
        learning_rate=-1.0,  # the step subtracts, at its own rate
        adam_b1=config.b1,
        adam_b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        consistent_rms=MUON_RMS,
        muon_weight_dimension_numbers=lambda params: muon_dimensions(params, axes),
    )

    def others(params: PyTree) -> PyTree:  # optax decays only the matrices that Muon updates
        return jax.tree.map(
            lambda decays, names: decays and bool(TABLE_AXES.intersection(names)),
            decay_mask(params, axes, config), _named(axes, params),
        )  # fmt: skip

    return [rule, optax.add_decayed_weights(config.weight_decay, mask=others)]


def muon_dimensions(params: PyTree, axes: PyTree = None) -> PyTree:
    """Returns each matrix's reduction and output axis, after stacked layers; None for the rest."""

    def dimensions(param: Any, names: tuple[str | None, ...]) -> MuonDimensionNumbers | None:
        layers = names.count("layers")
        if isinstance(param, optax.MaskedNode) or param.ndim - layers != 2:
            return None
        if TABLE_AXES.intersection(names):
            return None
        return MuonDimensionNumbers(layers, layers + 1)

    def is_masked(node: Any) -> bool:  # optax passes the tree with AdamW's part masked
        return isinstance(node, optax.MaskedNode)

    return jax.tree.map(dimensions, params, _named(axes, params, is_masked), is_leaf=is_masked)


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the update n = 1 .. total_steps.

    The last update has exactly `final`; "constant" stays at `peak` instead.
    """
    after = total_steps - config.warmup_steps
    decay = max(1, min(after, round(config.decay_fraction * total_steps)))
    body = {
        "constant": optax.constant_schedule(config.peak),
        "linear": optax.linear_schedule(config.peak, config.final, max(1, after)),
        "cosine": lambda n: (
            config.final
            + (config.peak - config.final)
            * 0.5
            * (1 + jnp.cos(math.pi * jnp.clip(n / max(1, after), 0, 1)))
        ),
        "wsd": optax.linear_schedule(config.peak, config.final, decay, max(0, after - decay)),
    }[config.schedule]
    if not config.warmup_steps:
        return body
    warmup = optax.linear_schedule(0.0, config.peak, config.warmup_steps)
    return optax.join_schedules([warmup, body], [config.warmup_steps])


def decay_mask(
    params: PyTree, axes: PyTree = None, config: OptimizerConfig = OptimizerConfig()
) -> PyTree:
    """Returns True for each parameter that decays: two dimensions or more without stacked layers.

    `config` decides for heads, which are matrices whose last axis is in `TABLE_AXES`, and for
    tables, which are other matrices with such an axis.
    """

    def decays(param: Any, names: tuple[str | None, ...]) -> bool:
        if param.ndim - names.count("layers") < 2:
            return False
        if not TABLE_AXES.intersection(names):
            return True
        return config.decay_head if names[-1] in TABLE_AXES else config.decay_embeddings

    return jax.tree.map(decays, params, _named(axes, params))


def _named(axes: PyTree, params: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> PyTree:
    """Returns the logical axes, or an empty tuple for each parameter if there are none."""
    return jax.tree.map(lambda _: (), params, is_leaf=is_leaf) if axes is None else axes


def check_new(config: OptimizerConfig, total_steps: int) -> None:
    """Refuses, for a new run, a warm-up that leaves no step for `final`; earlier versions took it.

    Raises:
      UserError: the warm-up is too long; the message says how long it may be.
    """
    if config.schedule != "constant" and config.warmup_steps == total_steps:
        raise _too_long(config, total_steps, most=total_steps - 1)


def _check(config: OptimizerConfig, total_steps: int) -> None:
    if config.warmup_steps > total_steps:
        most = total_steps - (config.schedule != "constant")
        raise _too_long(config, total_steps, most=most)


def _too_long(config: OptimizerConfig, total_steps: int, *, most: int) -> UserError:
    return UserError(
        f"optimizer.warmup_steps: {config.warmup_steps} of the run's {total_steps} steps; give "
        f"at most {most}"
    )
