"""Writes what a version leaves on disk, for `tests/test_old_runs.py`: `python make.py OUT.zip`.

`v0.zip` was written on 2026-11-28 at commit e161a3a, jax 0.10.2, before `ExecutionConfig` (its
overrides were `model.transformer.remat=full` and so on). Never write it again: later code must go
on from what earlier code left. It holds prepared rows, three runs stopped half-way with the figures
of their ends, a training of the quickstart that is done and one that is not, the config of every
kind of experiment, and fingerprints that lie on disk.
"""

import dataclasses
import shutil
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from speechlm_jax import artifacts, config
from speechlm_jax.audio.augment import AugmentConfig
from speechlm_jax.audio.mel import MelConfig
from speechlm_jax.data.mixture import PreparedMixture, PreparedTask, write_mixture
from speechlm_jax.data.packing import Row
from speechlm_jax.data.plan import MixturePlan, Phase, TaskRows
from speechlm_jax.data.prepare import PrepareConfig
from speechlm_jax.data.rows import RowFile, write_row_manifest, write_rows
from speechlm_jax.data.shares import PhaseSpec, fraction, rest
from speechlm_jax.experiment.configs import (
    ClipsData,
    LanguageModelExperiment,
    RowsData,
    SpeechDecoderExperiment,
    SpeechTokenizerExperiment,
)
from speechlm_jax.experiment.processes import Run
from speechlm_jax.experiment.training import train_experiment
from speechlm_jax.interleave.build import InterleaveConfig
from speechlm_jax.nn.language_model import LanguageModelConfig
from speechlm_jax.nn.layers import Lora
from speechlm_jax.nn.rotary import LongContext
from speechlm_jax.nn.transformer import TransformerConfig
from speechlm_jax.quickstart.sizes import MICRO
from speechlm_jax.text_to_token.synthesize import SynthesisConfig
from speechlm_jax.train import checkpoints
from speechlm_jax.train.loop import TrainConfig
from speechlm_jax.train.optimizer import OptimizerConfig
from speechlm_jax.vocab import Vocab

VOCAB = Vocab(12, 8, 12.5, "text", "tokenizer", num_spare=4, pad_to_multiple=8)
STACK = TransformerConfig(num_layers=2, embed=8, heads=2, kv_heads=1, head_dim=4, mlp=16)
ENDS, HALF = 8, 4
LENGTH = 16


def experiments() -> dict[str, LanguageModelExperiment]:
    """Small runs: all defaults, execution and recipe of their own, and the other kind."""
    rows = RowsData("rows/mix.mixture.json", batch_size=4)
    train = TrainConfig(
        total_steps=ENDS,
        save_every_steps=HALF,
        log_every_steps=2,
        optimizer=OptimizerConfig(warmup_steps=2, peak=1e-2),
    )
    plain = LanguageModelExperiment(rows, LanguageModelConfig(0, STACK), train)
    tuned = config.override(
        plain,
        [
            "model.transformer.execution.remat=full",
            "model.transformer.execution.attention=blockwise",
            'model.transformer.execution.saved=["qkv"]',
            "model.transformer.execution.unroll=2",
            "model.tied=false",
            "train.num_microbatches=2",
            "train.optimizer.name=muon",
            "train.optimizer.schedule=wsd",
            "z_loss=0.0001",
        ],
    )
    return {
        "plain": plain,
        "tuned": tuned,
        "text_to_token": dataclasses.replace(plain, kind="text_to_token"),
    }


def every_config() -> dict[str, object]:
    """The quickstart's experiments of each kind, and one of a run."""
    clips = ClipsData("features", "text.model", codes="codes", kinds=("string",))
    rows = RowsData("rows.mixture.json", batch_size=3)
    size = MICRO
    varied = dataclasses.replace(clips, augment=AugmentConfig(max_joined=2))
    phases = (PhaseSpec("train", {"a": fraction(0.3), "b": rest()}, tokens=10**6),)
    long = dataclasses.replace(STACK, lora=Lora(), long_context=LongContext())
    return {
        "speech_tokenizer": SpeechTokenizerExperiment(
            varied, size.tokenizer, size.tokenizer_training.config(seed=0)
        ),
        "adapted": LanguageModelExperiment(
            dataclasses.replace(rows, phases=phases),
            LanguageModelConfig(0, long),
            TrainConfig(total_steps=0),
        ),
        "lm": LanguageModelExperiment(rows, size.lm, size.lm_training.config(seed=1)),
        "speech_decoder": SpeechDecoderExperiment(
            clips, size.speech_decoder, size.speech_decoder_training.config(seed=2)
        ),
        **experiments(),
    }


def fingerprinted() -> dict[str, object]:
    """What is stored by its fingerprint alone."""
    phase = Phase("train", (3, 4))
    return {
        "vocab": VOCAB,
        "plan": MixturePlan((TaskRows("a", 2, 3, 4, "f"), TaskRows("b", 5, 6, 7)), (phase,), 1),
        "mixture": PreparedMixture("mix", 16, "v", (PreparedTask("a", 1.0, {"train": "a/train"}),)),
        "prepare": PrepareConfig(length=16),
        "interleave": InterleaveConfig(seed=1),
        "synthesis": SynthesisConfig(),
        "mel": MelConfig(),
    }


def write_prepared_rows(out: Path) -> Path:
    """Two tasks of random rows, each with a train and a held-out split."""
    random, tasks = np.random.default_rng(0), []
    for name, rate in {"a": 1.0, "b": 2.0}.items():
        for split, count in {"train": 24, "validation": 3}.items():
            rows = [
                Row(
                    random.integers(0, VOCAB.size, LENGTH).astype(np.int32),
                    np.ones(LENGTH, np.int32),
                    np.arange(LENGTH, dtype=np.int32),
                    np.arange(LENGTH) > 0,
                )
                for _ in range(count)
            ]
            folder = out / name / split
            path = folder / "rows.arrayrecord"
            counts = write_rows(path, rows, vocab=VOCAB, length=LENGTH)
            write_row_manifest(
                folder, [RowFile(path.name, count, path.stat().st_size)], task=name, split=split,
                vocab=VOCAB, length=LENGTH, counts=dataclasses.asdict(counts), inputs={},
                config={}, seed=0,
            )  # fmt: skip
        tasks.append(
            PreparedTask(
                name, rate, {split: f"{name}/{split}" for split in ("train", "validation")}
            )
        )
    return write_mixture(out, PreparedMixture("mix", LENGTH, VOCAB.fingerprint, tuple(tasks)))


def norms(run: Path) -> dict[str, float]:
    """The norm of each parameter of the run's newest checkpoint, by its path."""
    params = checkpoints.load_params(run).params
    return {
        jax.tree_util.keystr(path): float(np.linalg.norm(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def write_all(out: Path) -> None:
    """Everything of the archive, in a folder."""
    mixture = write_prepared_rows(out / "rows")
    ends = {}
    for name, experiment in experiments().items():
        run = out / name
        here = dataclasses.replace(
            experiment, data=dataclasses.replace(experiment.data, mixture=str(mixture))
        )
        train_experiment(here, run)
        log = list(artifacts.read_jsonl(run / "metrics.jsonl"))
        ends[name] = {"loss": [x["loss"] for x in log if "loss" in x], "norms": norms(run)}
        # What a kill between the two saves leaves.
        shutil.rmtree(run / "checkpoints" / f"{ENDS:08d}")
        artifacts.write_jsonl(run / "metrics.jsonl", (x for x in log if x["step"] <= HALF))
    artifacts.write_json(out / "ends.json", ends)
    configs = {name: config.to_json(x) for name, x in every_config().items()}
    artifacts.write_json(out / "configs.json", configs)
    fingerprints = {name: config.fingerprint(x) for name, x in fingerprinted().items()}
    artifacts.write_json(out / "fingerprints.json", fingerprints)
    for name in ("done", "stopped"):
        Run(name, every_config()["lm"], out / name, {"rows": "r"}).start()
    Run("done", every_config()["lm"], out / "done", {"rows": "r"}).finish()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write_all(Path(folder))
        shutil.make_archive(sys.argv[1].removesuffix(".zip"), "zip", folder)
