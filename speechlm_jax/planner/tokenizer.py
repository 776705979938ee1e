"""A speech tokenizer's config and absent slices -> what each chip holds, sends and computes."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from speechlm_jax.arrays import PyTree
from speechlm_jax.experiment.configs import SpeechTokenizerExperiment
from speechlm_jax.planner.answer import answer
from speechlm_jax.planner.compile import Compiled, compile_program, devices
from speechlm_jax.planner.plan import check_rows, parts_between_steps
from speechlm_jax.planner.roofline import Bounds, bounds
from speechlm_jax.planner.slices import Slices
from speechlm_jax.sharding import make_mesh
from speechlm_jax.speech_tokenizer.encoder import CONV_STRIDE
from speechlm_jax.speech_tokenizer.stage import make_stage
from speechlm_jax.train.program import Program, make_program

BYTES_PER_ID = 4  # of a transcript, about


@dataclasses.dataclass(frozen=True)
class TokenizerPlan:
    """Figures of a training step on the longest clips of a config.

    Attributes:
      rows: clips per batch, over all chips.
      seconds: length of a clip.
      compiled: the compiler's figures for the step; a tokenizer's training evaluates nothing.
      parts: bytes on each chip, by content.
      flops: FLOPs of a step over all chips, of its matrices alone (no attention).
    """

    slices: Slices
    rows: int
    seconds: float
    num_microbatches: int
    parameters: int
    compiled: Compiled
    parts: dict[str, int]
    flops: float
    bounds: Bounds

    @property
    def fits(self) -> bool:
        """True if every chip has room for a step."""
        return self.compiled.fits

    @property
    def hbm_share(self) -> float:
        """Needed fraction of a chip's memory; above 1 if it does not fit."""
        return self.compiled.hbm_bytes / self.slices.chip.hbm_bytes

    @property
    def microbatch_rows(self) -> int:
        """Clips that all chips together read at a time."""
        return self.rows // self.num_microbatches

    def to_json(self) -> dict[str, Any]:
        """Returns one JSON object; figures with `bound` in their names are projections."""
        audio = self.rows * self.seconds
        return {
            **answer(self.slices, self.compiled, self.parts, self.bounds),
            "parameters": self.parameters,
            "rows": self.rows,
            "num_microbatches": self.num_microbatches,
            "clip_seconds": self.seconds,
            "flops_of_matrices": self.flops,
            "flops_by_compiler": self.compiled.flops,
            "audio_hours_per_hour_bound": audio / self.bounds.seconds,
        }


def plan_tokenizer(
    experiment: SpeechTokenizerExperiment,
    slices: Slices,
    *,
    length: int,
    vocab_size: int,
    keep: Path | None = None,
) -> TokenizerPlan:
    """Compiles the step that `speechlm train` would run on batches of the longest bucket.

    Args:
      length: ids of the longest transcript.
      vocab_size: number of text ids if the config leaves it to the text vocabulary.
      keep: folder of earlier results; None: there is none.

    Raises:
      UserError: the config does not divide over the mesh, or the compiler is not installed.
    """
    experiment = with_text(experiment, vocab_size)
    microbatches, rows = experiment.train.num_microbatches, experiment.data.buckets.batch_size
    program = make_step(experiment, slices)
    check_rows(program, rows, microbatches, field="data.buckets.batch_size")
    mel_frames = experiment.data.buckets.edges[-1]
    batch = batch_shapes(experiment, mel_frames, length)
    parts = parts_between_steps(program, batch)
    compiled = compile_program(
        program.lower(batch), slices, argument_bytes=sum(parts.values()), keep=keep
    )
    parts |= {"temporaries": compiled.temporary_bytes, "program": compiled.program_bytes}
    params = program.layout.shapes.params
    flops = rows * matrix_flops(experiment, params, mel_frames=mel_frames, length=length)
    found = bounds(
        slices, flops=flops,
        hbm_bytes=2.0 * (parts["weights"] + parts["optimizer"] + parts["variables"]),
        moved=compiled.collectives,
    )  # fmt: skip
    seconds = mel_frames / experiment.model.mel.mel_rate_hz
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return TokenizerPlan(
        slices, rows, seconds, microbatches, parameters, compiled, parts, flops, found
    )


def with_text(experiment: SpeechTokenizerExperiment, vocab_size: int) -> SpeechTokenizerExperiment:
    """Returns the experiment with this many text ids if its config leaves them to a vocabulary."""
    model = experiment.model
    model = dataclasses.replace(model, text_size=model.text_size or vocab_size)
    return dataclasses.replace(experiment, model=model)


def make_step(experiment: SpeechTokenizerExperiment, slices: Slices) -> Program:
    """Builds the training step on these slices, without data."""
    train = experiment.train
    stage = make_stage(experiment.model, experiment.loss, lambda rows: iter(()))
    return make_program(
        stage, make_mesh(train.mesh, devices=devices(slices)), optimizer=train.optimizer,
        total_steps=train.total_steps, state=train.state, num_microbatches=train.num_microbatches,
    )  # fmt: skip


def batch_shapes(
    experiment: SpeechTokenizerExperiment, mel_frames: int, length: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch as `TranscribedClips` makes them."""
    rows, mels = experiment.data.buckets.batch_size, experiment.model.encoder.num_mels
    shapes = {
        "mel": ((rows, mel_frames, mels), np.float32),
        "text_ids": ((rows, length), np.int32),
        "bytes": ((rows, BYTES_PER_ID * length), np.int32),
    } | {name: ((rows,), np.int32) for name in ("mel_lengths", "text_lengths", "byte_lengths")}
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def matrix_flops(
    experiment: SpeechTokenizerExperiment, params: PyTree, *, mel_frames: int, length: int
) -> float:
    """Returns the FLOPs of a clip's forward and backward pass in its matrices, without attention.

    What memory goes through, cross-attention's keys and values, counts as its queries do.
    """
    frames = mel_frames / CONV_STRIDE
    codes = frames / experiment.model.encoder.pool_factor
    positions = {"late": codes, "decoder": length + 1, "ctc": codes, "head": length + 1}
    return sum(
        6.0 * leaf.size * positions.get(name, frames if name == "encoder" else 0)
        for name, tree in params.items()
        for leaf in jax.tree.leaves(tree)
        if leaf.ndim > 1
    )
