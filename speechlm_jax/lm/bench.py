"""Speed of a training step on synthetic rows; needs no data libraries (grain, seqio)."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from speechlm_jax import config as configs
from speechlm_jax.arrays import Int, ndarray
from speechlm_jax.errors import UserError
from speechlm_jax.lm.stage import make_stage
from speechlm_jax.nn.language_model import LanguageModelConfig
from speechlm_jax.sharding import MeshConfig, make_mesh, to_global
from speechlm_jax.train.optimizer import OptimizerConfig
from speechlm_jax.train.program import make_program
from speechlm_jax.train.stage import Stage
from speechlm_jax.train.state import StateConfig
from speechlm_jax.train.work import rates
from speechlm_jax.vocab import Vocab

MEAN_DOCUMENT = 600  # ids; lengths are log-normal, like those of web pages
SPREAD = 1.0  # standard deviation of the logarithm of lengths


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """Settings of a benchmark.

    Attributes:
      rows, length: rows of a batch over all devices, and ids of a row.
      steps: number of timed steps, after `warmup` steps that are not timed.
      num_microbatches: parts of a batch.
      z_loss: weight of the squared log-partition in the loss, as in training.
    """

    rows: int = 8
    length: int = 8192
    steps: int = 10
    warmup: int = 2
    num_microbatches: int = 1
    optimizer: OptimizerConfig = OptimizerConfig(warmup_steps=0, schedule="constant")
    mesh: MeshConfig = MeshConfig()
    seed: int = 0
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        configs.at_least(self, 1, "rows", "steps", "num_microbatches")
        configs.at_least(self, 8, "length")
        configs.at_least(self, 0, "warmup", "z_loss")
        configs.at_least(self, 0, "seed", most=2**32 - 1)


def from_experiment(data: Any, where: str) -> tuple[LanguageModelConfig, BenchConfig]:
    """Returns the model of a language model's JSON config, and the settings that change its step.

    Raises:
      UserError: it is no such config; the message begins with `where`.
    """
    if not isinstance(data, dict) or data.get("class") != "LanguageModelExperiment":
        raise UserError(f"{where}: is not the config of a language model")
    try:
        train, steady = data["train"], {"schedule": "constant", "warmup_steps": 0}
        found = {
            "rows": data["data"]["batch_size"],
            "num_microbatches": train["num_microbatches"],
            "optimizer": {**train["optimizer"], **steady},
            "mesh": train["mesh"],
            "z_loss": data["z_loss"],
        }
        model = data["model"]
    except (KeyError, TypeError):
        raise UserError(f"{where}: is a config of another version; train again") from None
    try:
        return configs.from_json(LanguageModelConfig, model), configs.from_json(BenchConfig, found)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def bench_train(model: LanguageModelConfig, config: BenchConfig) -> dict[str, Any]:
    """Times the training step and returns the measurements; rates follow from the median step."""
    stage = synthetic_stage(model, z_loss=config.z_loss)
    mesh = make_mesh(config.mesh)
    program = make_program(
        stage,
        mesh,
        optimizer=config.optimizer,
        total_steps=config.warmup + config.steps,
        num_microbatches=config.num_microbatches,
        state=StateConfig(),
    )
    batch = synthetic_rows(config, model.vocab_size)
    with jax.set_mesh(mesh):
        state = program.init(config.seed)
        on_mesh, key = to_global(batch, mesh=mesh), jax.random.key(config.seed)
        began = time.perf_counter()
        lowered = program.lower(batch)
        trace_seconds = time.perf_counter() - began
        compiled = lowered.compile()
        compile_seconds = time.perf_counter() - began - trace_seconds
        seconds: list[float] = []
        metrics: Any = None
        for _ in range(config.warmup + config.steps):
            began = time.perf_counter()
            state, metrics = compiled(state, on_mesh, key)
            jax.block_until_ready((state, metrics))
            seconds.append(time.perf_counter() - began)
    timed = np.array(seconds[config.warmup :])
    assert stage.work is not None
    work, device = stage.work(batch), mesh.devices.flat[0]
    memory = compiled.memory_analysis()
    return {
        "model": configs.to_json(model),
        "bench": configs.to_json(config),
        "device": device.device_kind,
        "chips": mesh.size,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(program.layout.shapes.params)),
        "tokens": work.tokens,
        "step_seconds": float(np.median(timed)),
        "step_seconds_p95": float(np.percentile(timed, 95)),
        **rates(work, float(np.median(timed)), chips=mesh.size, device_kind=device.device_kind),
        "tflops_causal": work.flops_causal / float(np.median(timed)) / 1e12,
        "trace_seconds": trace_seconds,
        "compile_seconds": compile_seconds,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use"),
        "loss": float(metrics["loss"][0] / metrics["loss"][1]),
    }


def synthetic_stage(
    model: LanguageModelConfig, tasks: Sequence[str] = ("synthetic",), *, z_loss: float = 0.0
) -> Stage:
    """Returns the stage of a model, without data; half of its ids are text, a quarter are codes."""
    vocab = Vocab(model.vocab_size // 2, model.vocab_size // 4, 12.5, "none", "none", num_spare=0)
    return make_stage(model, vocab, tasks, lambda rows: iter(()), z_loss=z_loss)


def synthetic_rows(config: BenchConfig, vocab_size: int) -> dict[str, ndarray]:
    """Returns a batch of full rows of documents with random ids."""
    random = np.random.default_rng(config.seed)
    segments = np.stack([_documents(config.length, random) for _ in range(config.rows)])
    starts = np.diff(segments, axis=1, prepend=0) != 0
    places = np.arange(config.length)
    first = np.maximum.accumulate(np.where(starts, places, 0), axis=1)
    return {
        "ids": random.integers(0, vocab_size, segments.shape).astype(np.int32),
        "segments": segments,
        "positions": (places - first).astype(np.int32),
        "loss_mask": np.ones(segments.shape, np.float32),
        "task": np.zeros(config.rows, np.int32),
    }


def _documents(length: int, random: np.random.Generator) -> Int[ndarray, " length"]:
    """Returns the segments 1, 2, ... of a full row."""
    mean = np.log(MEAN_DOCUMENT) - SPREAD**2 / 2
    lengths = np.maximum(8, random.lognormal(mean, SPREAD, size=length // 8)).astype(int)
    ends = np.cumsum(lengths)
    return (1 + np.searchsorted(ends, np.arange(length), side="right")).astype(np.int32)
