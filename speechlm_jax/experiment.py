"""Experiments: config -> stage -> training run, and run -> the trained thing that a verb needs.

The one file that joins the rooms. An experiment is a frozen dataclass; `train` dispatches on its
class, and `load_*` reads back from a run's folder what its checkpoint was trained as.
"""

import dataclasses
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.audio.augment import AugmentConfig, Augmenter, Varied
from speechlm_jax.audio.recordings import Features
from speechlm_jax.data.clips import BucketConfig, BucketedClips, clip_batches, pad_rows
from speechlm_jax.data.mixture import open_shards, read_mixture, task_rows
from speechlm_jax.data.plan import MixturePlan, TaskRows
from speechlm_jax.data.shares import PhaseSpec, Share, make_plan, rates_to_shares
from speechlm_jax.data.stream import make_batches, read_batches
from speechlm_jax.errors import UserError
from speechlm_jax.lm import stage as lm_stage
from speechlm_jax.lm.row_losses import RowLoss, rows_to_losses
from speechlm_jax.nn.inference import Inference
from speechlm_jax.nn.language_model import LanguageModelConfig
from speechlm_jax.speech_decoder import stage as decoder_stage
from speechlm_jax.speech_decoder.flow import FlowConfig
from speechlm_jax.speech_decoder.synthesis import SpeechDecoder
from speechlm_jax.speech_tokenizer import stage as tokenizer_stage
from speechlm_jax.speech_tokenizer.model import SpeechTokenizerConfig
from speechlm_jax.speech_tokenizer.reading import Reader
from speechlm_jax.speech_tokenizer.stage import SpeechTokenizerLoss
from speechlm_jax.text import TextTokenizer
from speechlm_jax.text_to_token import stage as text_to_token_stage
from speechlm_jax.train import checkpoints
from speechlm_jax.train.held_out import held_out
from speechlm_jax.train.loop import OPERATIONAL, TrainConfig, decisive, fit
from speechlm_jax.train.stage import Stage
from speechlm_jax.train.state import TrainState
from speechlm_jax.vocab import Vocab

ROWS_PER_CALL = 8  # of held-out rows
# Where data lies says nothing about what it is: stages carry the fingerprints of what they read.
PLACES = {
    "ClipsData": frozenset({"features", "text_vocab", "codes"}),
    "RowsData": frozenset({"mixture"}),
}


@dataclasses.dataclass(frozen=True)
class ClipsData:
    """Clips to train on.

    Attributes:
      features: feature folder (see `audio.recordings`).
      text_vocab: SentencePiece model of the transcripts.
      codes: codes folder of the same clips, where codes are needed.
      split: clips whose manifest row has this `split` (rows without one belong to "train").
      kinds: if given, only clips of these `kind`s.
      not_speakers: speakers left out.
      augment: how a speech tokenizer's clips are varied; None takes them as they are.
    """

    features: str
    text_vocab: str = ""
    codes: str = ""
    split: str = "train"
    kinds: tuple[str, ...] = ()
    not_speakers: tuple[str, ...] = ()
    buckets: BucketConfig = BucketConfig()
    augment: AugmentConfig | None = None


@dataclasses.dataclass(frozen=True)
class RowsData:
    """Packed rows to train on.

    Attributes:
      mixture: the .mixture.json that `prepare` wrote.
      shares: share of the budget by task; empty takes the mixture's SeqIO rates.
      phases: instead of `shares`, phases with budgets of their own; `train.total_steps` 0 then
        trains on all their rows.
      batch_size: rows a step, over all hosts.
      seed: of the order of rows.
    """

    mixture: str
    shares: dict[str, Share] = dataclasses.field(default_factory=dict)
    phases: tuple[PhaseSpec, ...] = ()
    batch_size: int = 8
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class SpeechTokenizerExperiment:
    """Trains a speech tokenizer; `model.text_size` 0 is read from the text vocabulary."""

    data: ClipsData
    model: SpeechTokenizerConfig
    train: TrainConfig
    loss: SpeechTokenizerLoss = SpeechTokenizerLoss()


@dataclasses.dataclass(frozen=True)
class LanguageModelExperiment:
    """Trains a language model, or with `kind="text_to_token"` a text-to-token model, on rows.

    `model.vocab_size` 0 is read from the rows' vocabulary. `eval_every_steps` of held-out loss.
    `z_loss` weighs the squared log-partition (of the language model alone).
    """

    data: RowsData
    model: LanguageModelConfig
    train: TrainConfig
    kind: str = "lm"
    eval_every_steps: int = 500
    z_loss: float = 0.0


@dataclasses.dataclass(frozen=True)
class SpeechDecoderExperiment:
    """Trains a flow from codes to mel frames; fields of `model` at 0 are read from the data."""

    data: ClipsData
    model: FlowConfig
    train: TrainConfig


Experiment = SpeechTokenizerExperiment | LanguageModelExperiment | SpeechDecoderExperiment
EXPERIMENTS = {
    cls.__name__: cls
    for cls in (SpeechTokenizerExperiment, LanguageModelExperiment, SpeechDecoderExperiment)
}


def load_experiment(path: str | Path) -> Experiment:
    """Reads an experiment from a Python config file or from a resolved config.json."""
    if Path(path).suffix == ".json":
        return experiment_from_json(artifacts.read_json(path), str(path))
    found = configs.load(path)
    if type(found).__name__ not in EXPERIMENTS:
        raise UserError(f"{path}: config() returned {type(found).__name__}, not an experiment")
    return found


def experiment_from_json(data: dict[str, Any], where: str) -> Experiment:
    """An experiment from its JSON data."""
    cls = EXPERIMENTS.get(data.get("class", ""))
    if cls is None:
        raise UserError(f"{where}: is not the config of an experiment")
    return configs.from_json(cls, data)


def train(config: str | Path, *, overrides: Sequence[str] = (), workdir: str | Path) -> None:
    """Trains what a config file says; see `train_experiment`."""
    train_experiment(configs.override(load_experiment(config), overrides), workdir)


def train_experiment(experiment: Experiment, workdir: str | Path) -> None:
    """Trains an experiment in `workdir`, or goes on where it stopped."""
    makers: dict[type, Any] = {
        SpeechTokenizerExperiment: _speech_tokenizer,
        LanguageModelExperiment: _language_model,
        SpeechDecoderExperiment: _speech_decoder,
    }
    resolved, stage = makers[type(experiment)](experiment)
    fit(stage, resolved.train, workdir, resolved=resolved, operational=OPERATIONAL | PLACES)


def essence(experiment: Experiment) -> dict[str, Any]:
    """An experiment's JSON data without folders: the same wherever its data and `init_from` lie."""
    started_from = {"TrainConfig": frozenset({"init_from"})}
    return decisive(configs.to_json(experiment), PLACES | started_from)


def trained_model(run: str | Path) -> LanguageModelConfig:
    """The language model that a run (or a converted model) holds, to go on from in a config.

    `dataclasses.replace` changes what may differ there: remat, dtype, adapters.
    """
    return _load_meta(run, LanguageModelExperiment)[1].model


def load_vocab(mixture: str | Path) -> Vocab:
    """The vocabulary of a prepared mixture."""
    shards = open_shards(mixture)
    return next(iter(shards.values())).vocab


def load_reader(
    run: str | Path, *, batch_size: int = 64
) -> tuple[Reader, SpeechTokenizerExperiment, str]:
    """A trained speech tokenizer, its experiment, and its fingerprint."""
    weights, experiment = _load(run, SpeechTokenizerExperiment)
    reader = Reader(experiment.model, weights.params, weights.variables, batch_size=batch_size)
    return reader, experiment, weights_fingerprint(weights)


def load_inference(
    run: str | Path, *, kind: str | None = None, vocab: Vocab | None = None, batch_size: int = 64
) -> tuple[Inference, LanguageModelExperiment]:
    """A trained language or text-to-token model, from its run or one of its checkpoints.

    Raises:
      UserError: it is not of this `kind`, or was trained with another vocabulary than `vocab`.
    """
    weights, experiment = _load(run, LanguageModelExperiment)
    if kind is not None and experiment.kind != kind:
        raise UserError(f"{run}: is a model of kind {experiment.kind}; give one of kind {kind}")
    if vocab is not None:
        tokenizer = vocab.tokenizer_fingerprint
        _require(weights, run, {"vocabulary": vocab.fingerprint, "tokenizer": tokenizer})
    return Inference(experiment.model, weights.params, batch_size=batch_size), experiment


def load_speech_decoder(
    run: str | Path, *, tokenizer: str | None = None, batch_size: int = 32
) -> tuple[SpeechDecoder, SpeechDecoderExperiment]:
    """A trained speech decoder; UserError if it speaks codes of another `tokenizer`."""
    weights, experiment = _load(run, SpeechDecoderExperiment)
    if tokenizer is not None:
        _require(weights, run, {"tokenizer": tokenizer})
    return SpeechDecoder(experiment.model, weights.params, batch_size=batch_size), experiment


def held_out_losses(
    run: str | Path, *, mixture: str | Path | None = None, most_rows: int = 64
) -> dict[str, list[RowLoss]]:
    """What a language model loses on held-out rows, by task.

    Args:
      run: a run's folder, or one of its checkpoints.
      mixture: prepared rows; by default those that the model was trained on.
      most_rows: of a task.
    """
    weights, experiment = _load(run, LanguageModelExperiment)
    losses = {}
    for task, rows in open_shards(mixture or experiment.data.mixture, split="validation").items():
        _require(weights, run, {"vocabulary": rows.vocab.fingerprint})
        batches = read_batches(rows, batch_size=ROWS_PER_CALL)
        found = rows_to_losses(experiment.model, weights.params, batches)
        losses[task] = list(islice(found, min(most_rows, len(rows))))
    return losses


def load_language_model(
    run: str | Path,
) -> tuple[checkpoints.Weights, LanguageModelExperiment]:
    """A trained language or text-to-token model's weights, and what it was trained as."""
    return _load(run, LanguageModelExperiment)


def save_language_model(
    workdir: str | Path, model: LanguageModelConfig, params: Any, vocab: Vocab
) -> None:
    """Writes weights from elsewhere as step 0 of a run, for `init_from`, evaluation and decoding.

    Raises:
      UserError: the folder holds a run already.
    """
    if checkpoints.latest_good(workdir) is not None:
        raise UserError(f"{workdir}: holds a run already; give a new folder")
    experiment = LanguageModelExperiment(RowsData(mixture=""), model, TrainConfig(total_steps=1))
    data = configs.to_json(experiment)
    meta = checkpoints.Meta(
        stage="lm",
        step=0,
        rows_seen=0,
        identity={"vocabulary": vocab.fingerprint, "tokenizer": vocab.tokenizer_fingerprint},
        config=data,
        fingerprint=configs.fingerprint(data),
        timing={},
    )
    writer = checkpoints.CheckpointWriter(workdir)
    writer.save(TrainState(0, params, {}, {}), meta)
    writer.close()


def weights_fingerprint(weights: checkpoints.Weights) -> str:
    """Identity of trained weights: what they were trained as and for how long."""
    meta = weights.meta
    return configs.fingerprint({"config": meta.fingerprint, "step": meta.step, **meta.identity})


def _load(run: str | Path, cls: type) -> tuple[checkpoints.Weights, Any]:
    weights = checkpoints.load_params(run)
    return weights, _as_trained(run, weights.meta, cls)


def _load_meta(run: str | Path, cls: type) -> tuple[checkpoints.Meta, Any]:
    meta = checkpoints.newest_meta(run)
    return meta, _as_trained(run, meta, cls)


def _as_trained(run: str | Path, meta: checkpoints.Meta, cls: type) -> Any:
    experiment = experiment_from_json(meta.config, str(run))
    if not isinstance(experiment, cls):
        raise UserError(f"{run}: holds a {type(experiment).__name__}, not a {cls.__name__}")
    return experiment


def _require(weights: checkpoints.Weights, run: str | Path, wanted: dict[str, str]) -> None:
    """UserError that names both sides where weights were trained with something else."""
    for name, value in wanted.items():
        found = weights.meta.identity.get(name)
        if found != value:
            raise UserError(
                f"{run}: was trained with {name} {found}, the data and models beside it have "
                f"{value}; use a checkpoint and a run that belong together"
            )


def _hosts() -> dict[str, int]:
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def _chosen(data: ClipsData, features: Features) -> list[int]:
    """Numbers of the clips that an experiment trains on."""
    return [
        i
        for i, row in enumerate(features.rows)
        if row.get("split", "train") == data.split
        and (not data.kinds or row.get("kind") in data.kinds)
        and row.get("speaker") not in data.not_speakers
    ]


def _clip_to_row(
    config: AugmentConfig | None, features: Features, chosen: list[int]
) -> Callable[..., Varied]:
    """What turns a chosen clip into a row; without a config, the clip as it is."""
    if config is None:
        return lambda number, *, row, limit: Varied((number,), features.mel(chosen[number]))
    speakers = [features.rows[i]["speaker"] for i in chosen]
    return Augmenter(config, features.mel_config, lambda n: features.mel(chosen[n]), speakers)


def _speech_tokenizer(given: SpeechTokenizerExperiment) -> tuple[SpeechTokenizerExperiment, Stage]:
    data = given.data
    features = Features(data.features)
    text = TextTokenizer.load(data.text_vocab)
    model = dataclasses.replace(given.model, text_size=given.model.text_size or text.size)
    resolved = dataclasses.replace(given, model=model)
    chosen = _chosen(data, features)
    ids = [np.array(text.encode(features.rows[i]["text"]), np.int32) for i in chosen]
    raw = [features.rows[i]["text"].encode() for i in chosen]
    lengths = features.lengths
    clips = BucketedClips([lengths[i] for i in chosen], data.buckets)
    vary = _clip_to_row(data.augment, features, chosen)
    joined = data.augment.max_joined if data.augment else 1
    most_ids, most_bytes = joined * max(map(len, ids)), joined * (max(map(len, raw)) + 1) - 1

    def collate(edge: int, numbers: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        varied = [
            vary(int(n), row=int(row), limit=edge) for n, row in zip(numbers, rows, strict=True)
        ]
        said = [np.concatenate([ids[n] for n in v.numbers]) for v in varied]
        written = [b" ".join(raw[n] for n in v.numbers) for v in varied]
        mel, mel_lengths = pad_rows([v.mel for v in varied], edge, np.float32)
        text_ids, text_lengths = pad_rows(said, most_ids)
        spelled, byte_lengths = pad_rows(
            [np.frombuffer(line, np.uint8) for line in written], most_bytes
        )
        return {
            "mel": mel,
            "mel_lengths": mel_lengths,
            "text_ids": text_ids,
            "text_lengths": text_lengths,
            "bytes": spelled,
            "byte_lengths": byte_lengths,
        }

    stage = tokenizer_stage.make_stage(
        model,
        resolved.loss,
        clip_batches(clips, collate, **_hosts()),
        identity={"features": features.fingerprint, "text": text.fingerprint},
    )
    return resolved, stage


def _language_model(given: LanguageModelExperiment) -> tuple[LanguageModelExperiment, Stage]:
    data = given.data
    shards = open_shards(data.mixture)
    tasks = task_rows(shards)
    vocab = next(iter(shards.values())).vocab
    model = dataclasses.replace(given.model, vocab_size=given.model.vocab_size or vocab.size)
    if model.vocab_size < vocab.size:
        raise UserError(
            f"model.vocab_size: {model.vocab_size}; the rows' vocabulary has {vocab.size}"
        )
    plan, total_steps = _plan(given, tasks)
    batches = make_batches(plan, shards, batch_size=data.batch_size, **_hosts())
    identity = {"plan": plan.fingerprint, "tokenizer": vocab.tokenizer_fingerprint}
    names = [task.name for task in tasks]
    if given.kind == "text_to_token":
        stage = text_to_token_stage.make_stage(model, vocab, batches, identity=identity)
    else:
        stage = lm_stage.make_stage(
            model, vocab, names, batches, identity=identity, z_loss=given.z_loss
        )
    unseen = {
        name: lambda rows=rows, name=name: read_batches(
            rows, batch_size=data.batch_size, task=names.index(name)
        )
        for name, rows in open_shards(data.mixture, split="validation").items()
    }
    if unseen:
        evals = (held_out(stage.loss, unseen, every_steps=given.eval_every_steps),)
        stage = dataclasses.replace(stage, evals=evals)
    stage = dataclasses.replace(stage, progress=lambda rows: _progress(plan, rows))
    resolved = dataclasses.replace(given.train, total_steps=total_steps)
    return dataclasses.replace(given, model=model, train=resolved), stage


def _plan(given: LanguageModelExperiment, tasks: Sequence[TaskRows]) -> tuple[MixturePlan, int]:
    """The rows of a run in order, and its number of steps."""
    data, steps = given.data, given.train.total_steps
    if not data.phases:
        shares = data.shares or rates_to_shares(read_mixture(data.mixture).rates)
        phase = PhaseSpec("train", dict(shares), rows=steps * data.batch_size)
        return make_plan(tasks, [phase], seed=data.seed), steps
    if data.shares:
        raise UserError("data.shares: belongs into data.phases where there are phases")
    plan = make_plan(tasks, data.phases, seed=data.seed)
    most = plan.num_rows // data.batch_size
    if steps > most:
        raise UserError(
            f"train.total_steps: {steps}; the phases have rows for {most} steps of "
            f"{data.batch_size}; 0 takes them all"
        )
    return plan, steps or most


def _progress(plan: MixturePlan, rows_seen: int) -> dict[str, float]:
    """Tokens of each task and modality, and epochs, as figures of a log line."""
    figures: dict[str, float] = {}
    for task in plan.progress(rows_seen):
        figures[f"mixture/{task.name}/text_tokens"] = task.text_tokens
        figures[f"mixture/{task.name}/speech_tokens"] = task.speech_tokens
        figures[f"mixture/{task.name}/epochs"] = task.epochs
    return figures


def _speech_decoder(given: SpeechDecoderExperiment) -> tuple[SpeechDecoderExperiment, Stage]:
    data = given.data
    features = Features(data.features)
    codes_manifest = artifacts.read_manifest(data.codes)
    rows = {row["id"]: row for row in artifacts.read_jsonl(Path(data.codes) / "codes.jsonl")}
    chosen = [i for i in _chosen(data, features) if rows[features.rows[i]["id"]]["codes"]]
    voices = sorted({features.rows[i]["speaker"] for i in chosen})
    per_code = given.model.mel_frames_per_code
    codes = [np.array(rows[features.rows[i]["id"]]["codes"], np.int32) for i in chosen]
    speakers = [1 + voices.index(features.rows[i]["speaker"]) for i in chosen]
    sample = np.concatenate([features.mel(i) for i in chosen[:500]])
    model = dataclasses.replace(
        given.model,
        codebook_size=codes_manifest.extra["codebook_size"],
        num_voices=len(voices),
        mel_mean=float(sample.mean()),
        mel_std=float(sample.std()),
    )
    clips = BucketedClips([len(row) * per_code for row in codes], data.buckets)

    def collate(edge: int, numbers: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        padded, lengths = pad_rows([codes[n] for n in numbers], edge // per_code)
        mels = [features.mel(chosen[n])[: len(codes[n]) * per_code] for n in numbers]
        return {
            "mel": pad_rows(mels, edge, np.float32)[0],
            "codes": padded,
            "code_lengths": lengths,
            "voices": np.array([speakers[n] for n in numbers], np.int32),
        }

    stage = decoder_stage.make_stage(
        model,
        clip_batches(clips, collate, **_hosts()),
        identity={"tokenizer": codes_manifest.extra["tokenizer"], "features": features.fingerprint},
    )
    return dataclasses.replace(given, model=model), stage
