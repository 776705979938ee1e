"""What a stage hands to the training loop; the loop knows nothing else about a model."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from speechlm_jax.arrays import Array, Float, Key, PyTree
from speechlm_jax.train.work import Measure

Metrics = Mapping[str, tuple[Float[Array, ""], Float[Array, ""]]]


class LossOutput(NamedTuple):
    """Sums over the rows of one micro batch.

    They are added over devices and micro batches and divided once: a mean of means would weigh
    ragged batches wrongly.

    Attributes:
      loss_sum: sum of weight times loss, float32.
      weight_sum: sum of the weights, float32.
      variables: the variables after the batch (an EMA codebook), or those that came in.
      metrics: (numerator, denominator) sums by name, float32; logged as their ratio.
    """

    loss_sum: Float[Array, ""]
    weight_sum: Float[Array, ""]
    variables: PyTree
    metrics: Metrics = {}


@dataclasses.dataclass(frozen=True)
class EvalState:
    """What an evaluation may read: the finished updates, parameters and variables.

    Attributes:
      alive: to be called whenever a part of it has ended (a batch): without a sign of life for
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
      every_steps: how often it runs; it also runs after the last step. Where a run was stopped or
        lost before it had logged its figures, the next start runs it.
      run: returns figures by name; all hosts call it at the same steps.
    """

    name: str
    every_steps: int
    run: Callable[[EvalState], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A model and its data, as functions.

    Attributes:
      name: what logs and messages call it.
      init: draws (params, variables) from a key; pure, so it can be jitted, sharded or only shaped.
      axes: the tree of the parameters with a tuple of logical axes at each leaf (None: unsplit), or
        None where nothing is ever split.
      loss: (params, variables, batch, key) to the sums of `LossOutput`.
      batches: from the number of rows already seen by all hosts, this host's batches from there on;
        the leading axis of every array counts rows.
      evals: what is measured while training.
      progress: from the number of rows seen, figures to log of what the data gave so far.
      work: what a batch of this host costs; None where nobody counts.
      identity: fingerprints that a checkpoint must carry to be resumed, by name ("vocabulary",
        "tokenizer", "plan", ...).
      described: JSON data that those fingerprints stand for, by the same names, where there is
        some: a refusal to resume says what of it differs.
      files: small files for those who open the trained model, by name: they are written beside the
        checkpoints.
    """

    name: str
    init: Callable[[Key[Array, ""]], tuple[PyTree, PyTree]]
    axes: PyTree
    loss: Callable[[PyTree, PyTree, Mapping[str, Array], Key[Array, ""]], LossOutput]
    batches: Callable[[int], Iterator[dict[str, np.ndarray]]]
    evals: tuple[Evaluation, ...] = ()
    progress: Callable[[int], dict[str, float]] | None = None
    work: Measure | None = None
    identity: dict[str, str] = dataclasses.field(default_factory=dict)
    described: dict[str, Any] = dataclasses.field(default_factory=dict)
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
