"""Interface of a stage to the training loop, which knows nothing else about a model."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from speechlm_jax.arrays import Array, Float, Key, PyTree
from speechlm_jax.train.work import Measure

Metrics = Mapping[str, tuple[Float[Array, ""], Float[Array, ""]]]
Batch = Mapping[str, Array]
Prepare = Callable[[PyTree, PyTree, Batch, Key[Array, ""]], Batch]


class LossOutput(NamedTuple):
    """Sums over the rows of one micro batch.

    They are added over devices and micro batches and divided once: a mean of means would weigh
    ragged batches wrongly.

    Attributes:
      loss_sum: sum of weight times loss, float32.
      weight_sum: sum of the weights, float32.
      metrics: (numerator, denominator) sums by name, float32; logged as their ratio.
      statistics: other sums, which `Stage.finish` gets; any tree of arrays.
    """

    loss_sum: Float[Array, ""]
    weight_sum: Float[Array, ""]
    metrics: Metrics = {}
    statistics: PyTree = ()


@dataclasses.dataclass(frozen=True)
class EvalState:
    """State that an evaluation may read: the finished updates, parameters and variables.

    Attributes:
      alive: must be called after each part of the evaluation (a batch): without a sign of life for
        `hang_seconds` a run of several hosts ends.
    """

    step: int
    params: PyTree
    variables: PyTree
    alive: Callable[[], None] = lambda: None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A callback of the loop.

    Attributes:
      name: prefix of its figures in the logs.
      every_steps: updates between evaluations; it also runs after the last step. If a run was
        stopped or crashed before it logged the figures, the next start runs it.
      run: returns figures by name; all hosts call it at the same steps.
    """

    name: str
    every_steps: int
    run: Callable[[EvalState], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A model and its data, as functions.

    Attributes:
      name: name in logs and messages.
      init: draws (params, variables) from a key; pure, so it can be jitted, sharded or only shaped.
      axes: the tree of the parameters with a tuple of logical axes at each leaf (None: unsplit), or
        None if nothing is ever split.
      loss: maps (params, variables, batch, key) to the sums of `LossOutput`.
      prepare: maps (params, variables, batch, key) to more arrays by row for `loss`, once a step,
        for the whole batch before it is split into micro batches: draws that must not depend on the
        split. None: there are none.
      finish: maps (variables, statistics) to the variables after a step (an EMA codebook), once a
        step and after all micro batches. None: variables stay.
      batches: maps the number of rows already seen by all hosts to this host's batches after them;
        the leading axis of every array counts rows.
      evals: evaluations during training.
      progress: maps the number of rows seen to figures about the data so far, to be logged.
      work: maps a batch of this host to its tokens and FLOPs; None if they are not counted.
      identity: fingerprints that a checkpoint must carry to be resumed, by name ("vocabulary",
        "tokenizer", "plan", ...).
      described: JSON data that those fingerprints stand for, by the same names, where available: a
        refusal to resume names the differences in it.
      files: small files for users of the trained model, by name; they are written beside the
        checkpoints.
    """

    name: str
    init: Callable[[Key[Array, ""]], tuple[PyTree, PyTree]]
    axes: PyTree
    loss: Callable[[PyTree, PyTree, Batch, Key[Array, ""]], LossOutput]
    batches: Callable[[int], Iterator[dict[str, np.ndarray]]]
    prepare: Prepare | None = None
    finish: Callable[[PyTree, PyTree], PyTree] | None = None
    evals: tuple[Evaluation, ...] = ()
    progress: Callable[[int], dict[str, float]] | None = None
    work: Measure | None = None
    identity: dict[str, str] = dataclasses.field(default_factory=dict)
    described: dict[str, Any] = dataclasses.field(default_factory=dict)
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
