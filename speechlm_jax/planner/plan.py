"""A config and absent slices -> what each chip holds, sends and computes in a training step."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from speechlm_jax.errors import UserError
from speechlm_jax.experiment.configs import LanguageModelExperiment
from speechlm_jax.lm.bench import synthetic_stage
from speechlm_jax.nn.language_model import LanguageModelConfig
from speechlm_jax.planner.answer import answer, held_bytes
from speechlm_jax.planner.compile import Compiled, compile_program, devices
from speechlm_jax.planner.roofline import Bounds, bounds, recomputed
from speechlm_jax.planner.slices import Slices
from speechlm_jax.sharding import batch_sharding, make_mesh, row_shards
from speechlm_jax.train.program import Program, make_program
from speechlm_jax.train.stage import Stage
from speechlm_jax.train.work import FlopCount

FIELDS = {"ids": np.int32, "segments": np.int32, "positions": np.int32, "loss_mask": np.float32}
SECONDS_A_DAY = 86_400
CAST_BYTES = 2  # a weight in bfloat16


@dataclasses.dataclass(frozen=True)
class Plan:
    """Figures of a training step on slices; all but the compiler's are projections.

    Attributes:
      length: ids per row.
      rows: rows per batch, over all chips.
      row_shards: number of parts into which the mesh splits rows.
      compiled: the compiler's figures for the step.
      evaluation: the compiler's figures for a batch of held-out loss, beside the whole state.
      parts: bytes on each chip, by content.
      work: model FLOPs of a batch whose rows are one document each.
      flops: FLOPs of a step over all chips, recomputation included.
      budget: tokens of the config's phases; 0: it names none.
    """

    slices: Slices
    length: int
    rows: int
    row_shards: int
    num_microbatches: int
    parameters: int
    compiled: Compiled
    evaluation: Compiled
    parts: dict[str, int]
    work: FlopCount
    flops: float
    bounds: Bounds
    budget: int

    @property
    def fits(self) -> bool:
        """True if every chip has room for a step, and for an evaluation."""
        return self.compiled.fits and self.evaluation.fits

    @property
    def hbm_bytes(self) -> int:
        """Bytes that each chip needs for the larger of the two."""
        return max(self.compiled.hbm_bytes, self.evaluation.hbm_bytes)

    @property
    def hbm_share(self) -> float:
        """Needed fraction of a chip's memory; above 1 if it does not fit."""
        return self.hbm_bytes / self.slices.chip.hbm_bytes

    @property
    def microbatch_rows(self) -> int:
        """Rows that all chips together read at a time."""
        return self.rows // self.num_microbatches

    @property
    def seconds_per_token(self) -> float:
        """Lower bound of the seconds per token, over all chips."""
        return self.bounds.seconds / (self.rows * self.length)

    @property
    def days(self) -> float | None:
        """Lower bound of the days for the budget; None without one, or if the plan does not fit."""
        if not self.budget or not self.fits:
            return None
        steps = self.budget / (self.rows * self.length)
        return steps * self.bounds.seconds / SECONDS_A_DAY

    def to_json(self) -> dict[str, Any]:
        """Returns one JSON object; figures with `bound` in their names are projections."""
        tokens = self.rows * self.length
        return {
            **answer(self.slices, self.compiled, self.parts, self.bounds),
            "fits": self.fits,
            "hbm_bytes": self.hbm_bytes,
            "hbm_share": round(self.hbm_share, 4),
            "step_hbm_bytes": self.compiled.hbm_bytes,
            "evaluation_hbm_bytes": self.evaluation.hbm_bytes,
            "parameters": self.parameters,
            "length": self.length,
            "rows": self.rows,
            "num_microbatches": self.num_microbatches,
            "tokens_per_chip": tokens // self.slices.chips,
            "model_flops_causal": self.work.flops_causal,
            "model_flops_full": self.work.flops_full,
            "flops_with_recomputation": self.flops,
            "flops_by_compiler": self.compiled.flops,
            "tokens_per_second_bound": tokens / self.bounds.seconds,
            "days_bound": self.days,
        }


def plan_training(
    experiment: LanguageModelExperiment,
    slices: Slices,
    *,
    length: int,
    vocab_size: int,
    keep: Path | None = None,
) -> Plan:
    """Compiles the step and the evaluation that `speechlm train` would run on these slices.

    Args:
      length: ids per row, as the rows were prepared.
      vocab_size: size of the vocabulary if the config leaves it to the rows.
      keep: folder of earlier results; None: there is none.

    Raises:
      UserError: the config does not divide over the mesh, or the compiler is not installed.
    """
    experiment = with_vocab(experiment, vocab_size)
    model, microbatches = experiment.model, experiment.train.num_microbatches
    program = make_step(experiment, slices)
    rows = experiment.data.batch_size
    check_rows(program, rows, microbatches)
    batch = {name: jax.ShapeDtypeStruct((rows, length), kind) for name, kind in FIELDS.items()}
    batch["task"] = jax.ShapeDtypeStruct((rows,), np.int32)
    parts = parts_between_steps(program, batch)
    compiled, evaluation = (
        compile_program(lowered, slices, argument_bytes=sum(parts.values()), keep=keep)
        for lowered in (program.lower(batch), program.lower_evaluation(batch))
    )
    parts |= {"temporaries": compiled.temporary_bytes, "program": compiled.program_bytes}
    work = program.stage.work
    assert work is not None
    work = work({"segments": np.ones((1, length), np.int32)}).times(rows)
    flops = work.flops_causal + rows * length * recomputed(model.transformer, length)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(program.layout.shapes.params))
    found = bounds(
        slices, flops=flops,
        hbm_bytes=2.0 * (parts["weights"] + parts["optimizer"])  # read and written
        + CAST_BYTES * parameters * _passes(model) * microbatches / program.mesh.shape["tensor"],
        moved=compiled.collectives,
    )  # fmt: skip
    budget = sum(phase.tokens or 0 for phase in experiment.data.phases)
    return Plan(
        slices, length, rows, row_shards(program.mesh), microbatches, parameters, compiled,
        evaluation, parts, work, flops, found, budget,
    )  # fmt: skip


def check(experiment: LanguageModelExperiment, slices: Slices) -> None:
    """Raises UserError if a config does not divide over its mesh; compiles nothing."""
    program = make_step(experiment, slices)
    check_rows(program, experiment.data.batch_size, experiment.train.num_microbatches)


def with_vocab(experiment: LanguageModelExperiment, vocab_size: int) -> LanguageModelExperiment:
    """Returns the experiment with a vocabulary of this size if its config leaves it to the rows."""
    model = experiment.model
    model = dataclasses.replace(model, vocab_size=model.vocab_size or vocab_size)
    return dataclasses.replace(experiment, model=model)


def make_stage(experiment: LanguageModelExperiment) -> Stage:
    """Makes the stage of an experiment without data, with the tasks that its config names."""
    names = {name for phase in experiment.data.phases for name in phase.shares}
    tasks = sorted(names | set(experiment.data.shares)) or ["rows"]
    return synthetic_stage(experiment.model, tasks, z_loss=experiment.z_loss)


def make_step(experiment: LanguageModelExperiment, slices: Slices) -> Program:
    """Builds the training step on these slices; its vocabulary has the model's size."""
    train = experiment.train
    steps = train.total_steps or train.optimizer.warmup_steps + 1
    mesh = make_mesh(train.mesh, devices=devices(slices))
    return make_program(
        make_stage(experiment), mesh, optimizer=train.optimizer, total_steps=steps,
        state=train.state, num_microbatches=train.num_microbatches,
    )  # fmt: skip


def _passes(model: LanguageModelConfig) -> int:
    """Returns how often a microbatch reads the weights: forward, backward, and forward again."""
    return 3 if model.transformer.execution.remat == "full" else 2


def check_rows(
    program: Program, rows: int, num_microbatches: int, *, field: str = "data.batch_size"
) -> None:
    """Raises UserError, which names a config's `field`, if rows do not divide over the mesh."""
    shards = row_shards(program.mesh)
    if rows % (shards * num_microbatches):
        raise UserError(
            f"{field}: {rows} rows do not divide into {num_microbatches} microbatches over "
            f"{shards} devices (replica x fsdp)"
        )


def parts_between_steps(program: Program, batch: dict[str, Any]) -> dict[str, int]:
    """Returns the bytes on each chip between steps, by content."""
    state, rows = program.layout.abstract, batch_sharding(program.mesh)
    placed = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for name, x in batch.items()
    }
    return {
        "weights": held_bytes(state.params),
        "optimizer": held_bytes((state.opt_state, state.extras)),
        **({"variables": held_bytes(state.variables)} if state.variables else {}),
        "batch": held_bytes(placed),
    }
