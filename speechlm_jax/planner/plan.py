"""A config and slices that are not there -> what each chip holds, sends and computes in a step."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from speechlm_jax.errors import UserError
from speechlm_jax.experiment.configs import LanguageModelExperiment
from speechlm_jax.lm.bench import synthetic_stage
from speechlm_jax.planner.collectives import Collective, collectives
from speechlm_jax.planner.compile import Compiled, compile_step, devices
from speechlm_jax.planner.roofline import Bounds, bounds, with_recomputation
from speechlm_jax.planner.slices import Slices
from speechlm_jax.sharding import make_mesh, row_shards
from speechlm_jax.train.program import Program, make_program
from speechlm_jax.train.work import Work

FIELDS = {"ids": np.int32, "segments": np.int32, "positions": np.int32, "loss_mask": np.float32}
SECONDS_A_DAY = 86_400


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training step takes on slices; everything but the compiler's word is a projection.

    Attributes:
      length: ids a row.
      rows: of a batch, over all chips.
      compiled: what the compiler says.
      parts: bytes on each chip, by what they hold.
      work: model FLOPs of a batch whose rows are one document each.
      flops: over all chips, recomputation included.
      collectives: none where the step does not fit.
      budget: tokens of the config's phases; 0: it names none.
    """

    slices: Slices
    length: int
    rows: int
    num_microbatches: int
    parameters: int
    compiled: Compiled
    parts: dict[str, int]
    work: Work
    flops: float
    collectives: tuple[Collective, ...]
    bounds: Bounds
    budget: int

    @property
    def fits(self) -> bool:
        """Whether the compiler found room, and what it says adds up to no more than there is."""
        return self.compiled.text is not None and (
            self.compiled.hbm_bytes <= self.slices.chip.hbm_bytes
        )

    @property
    def days(self) -> float | None:
        """For the budget, at the bound; None without one, or where the step does not fit."""
        if not self.budget or not self.fits:
            return None
        steps = self.budget / (self.rows * self.length)
        return steps * self.bounds.seconds / SECONDS_A_DAY

    def to_json(self) -> dict[str, Any]:
        """One JSON object; figures that are not the compiler's are named `..._bound`."""
        tokens, capacity = self.rows * self.length, self.slices.chip.hbm_bytes
        seconds = self.bounds.seconds
        return {
            "slices": self.slices.name,
            "chips": self.slices.chips,
            "fits": self.fits,
            "hbm_bytes": self.compiled.hbm_bytes,
            "capacity_bytes": capacity,
            "hbm_share": round(self.compiled.hbm_bytes / capacity, 4),
            "parts_bytes": self.parts,
            "parameters": self.parameters,
            "length": self.length,
            "rows": self.rows,
            "num_microbatches": self.num_microbatches,
            "tokens_per_chip": tokens // self.slices.chips,
            "model_flops_causal": self.work.flops_causal,
            "model_flops_full": self.work.flops_full,
            "flops_with_recomputation": self.flops,
            "flops_by_compiler": self.compiled.flops,
            "collectives": [dataclasses.asdict(one) for one in self.collectives],
            "bounds_seconds": dataclasses.asdict(self.bounds),
            "step_seconds_bound": seconds,
            "bound": self.bounds.name,
            "tokens_per_second_bound": tokens / seconds,
            "days_bound": self.days,
            "compile_seconds": round(self.compiled.seconds, 1),
        }


def plan_training(
    experiment: LanguageModelExperiment, slices: Slices, *, length: int, vocab_size: int
) -> Plan:
    """Compiles the step that `speechlm train` would run on these slices.

    Args:
      length: ids a row, as the rows were prepared with.
      vocab_size: where the config leaves it to the rows.

    Raises:
      UserError: the config does not divide over the mesh, or the compiler is not there.
    """
    model = experiment.model
    model = dataclasses.replace(model, vocab_size=model.vocab_size or vocab_size)
    program = _program(dataclasses.replace(experiment, model=model), slices)
    rows = experiment.data.batch_size
    _check_rows(program, rows, experiment.train.num_microbatches)
    batch = {name: jax.ShapeDtypeStruct((rows, length), kind) for name, kind in FIELDS.items()}
    batch["task"] = jax.ShapeDtypeStruct((rows,), np.int32)
    compiled = compile_step(program.lower(batch))
    stack = model.transformer
    assert program.stage.work is not None
    work = program.stage.work({"segments": np.ones((1, length), np.int32)}).times(rows)
    head = 6.0 * model.vocab_size * stack.embed * rows * length
    flops = with_recomputation(work, head_flops=head, remat=stack.remat)
    moved = _collectives(compiled, slices)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(program.layout.shapes.params))
    found = bounds(
        slices, program.mesh.devices.flat[0].device_kind, flops=flops, parameters=parameters,
        passes=(3 if stack.remat == "full" else 2) * experiment.train.num_microbatches,
        ici_bytes=sum(one.wire_bytes for one in moved if one.network == "ici"),
        dcn_bytes=sum(one.wire_bytes for one in moved if one.network == "dcn"),
    )  # fmt: skip
    budget = sum(phase.tokens or 0 for phase in experiment.data.phases)
    return Plan(
        slices, length, rows, experiment.train.num_microbatches, parameters, compiled,
        _parts(program, batch, compiled), work, flops,
        moved, found, budget,
    )  # fmt: skip


def _program(experiment: LanguageModelExperiment, slices: Slices) -> Program:
    """The step, with the tasks that the config names and a vocabulary of the model's size."""
    model, train = experiment.model, experiment.train
    names = {name for phase in experiment.data.phases for name in phase.shares}
    tasks = sorted(names | set(experiment.data.shares)) or ["rows"]
    stage = synthetic_stage(model, tasks, z_loss=experiment.z_loss)
    steps = train.total_steps or train.optimizer.warmup_steps + 1
    mesh = make_mesh(train.mesh, devices=devices(slices))
    return make_program(
        stage, mesh, optimizer=train.optimizer, total_steps=steps, state=train.state,
        num_microbatches=train.num_microbatches,
    )  # fmt: skip


def _check_rows(program: Program, rows: int, num_microbatches: int) -> None:
    shards = row_shards(program.mesh)
    if rows % (shards * num_microbatches):
        raise UserError(
            f"data.batch_size: {rows} rows do not divide into {num_microbatches} microbatches over "
            f"{shards} devices (replica x fsdp)"
        )


def _collectives(compiled: Compiled, slices: Slices) -> tuple[Collective, ...]:
    if compiled.text is None:
        return ()
    found = collectives(
        compiled.text, num_devices=slices.chips, devices_per_slice=slices.chips_a_slice
    )
    return tuple(found)


def _parts(program: Program, batch: dict[str, Any], compiled: Compiled) -> dict[str, int]:
    """Bytes on each chip; of a step that does not fit, what lies there between steps."""
    layout = program.layout

    def held(shapes: Any, shardings: Any) -> int:
        sizes = jax.tree.map(
            lambda leaf, where: math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
            shapes, shardings,
        )  # fmt: skip
        return sum(jax.tree.leaves(sizes))

    abstract, where = layout.shapes, layout.shardings
    parts = {
        "weights": held(abstract.params, where.params),
        "optimizer": held(abstract.opt_state, where.opt_state)
        + held(abstract.extras, where.extras),
        "batch": sum(math.prod(x.shape) * x.dtype.itemsize for x in batch.values())
        // row_shards(program.mesh),
    }
    if compiled.temporary_bytes is not None and compiled.program_bytes is not None:
        parts["temporaries"] = compiled.temporary_bytes
        parts["program"] = compiled.program_bytes
    return parts
