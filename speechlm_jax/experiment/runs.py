"""Loads the trained model of a run's folder, and saves weights from elsewhere as a run."""

import dataclasses
from itertools import islice
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from speechlm_jax import config as configs
from speechlm_jax.audio.mel_config import WHISPER, MelConfig
from speechlm_jax.codes import CodesIdentity
from speechlm_jax.data.bucket_rows import RowFetcher
from speechlm_jax.data.mixture import open_shards
from speechlm_jax.data.stream import read_batches
from speechlm_jax.errors import UserError
from speechlm_jax.experiment.configs import (
    ClipsData,
    LanguageModelExperiment,
    ModelKind,
    RowsData,
    SpeechDecoderExperiment,
    SpeechTokenizerExperiment,
    experiment_from_json,
)
from speechlm_jax.folder_lock import FolderLock
from speechlm_jax.id_set import IdSet
from speechlm_jax.lm.row_losses import RowLoss, rows_to_losses
from speechlm_jax.nn import decoding_params
from speechlm_jax.nn.inference import Inference
from speechlm_jax.nn.language_model import LanguageModelConfig
from speechlm_jax.padding import round_up
from speechlm_jax.sharding import row_shards
from speechlm_jax.speech_decoder.synthesis import SpeechDecoder
from speechlm_jax.speech_tokenizer.model import SpeechTokenizerConfig
from speechlm_jax.speech_tokenizer.reading import Transcriber
from speechlm_jax.train import checkpoint_folder, checkpoints
from speechlm_jax.train.loop import TrainConfig
from speechlm_jax.train.state import TrainState
from speechlm_jax.vocab import Vocab

ROWS_PER_CALL = 8  # held-out rows in a batch


def trained_model(run: str | Path) -> LanguageModelConfig:
    """Returns the config of a run's (or a converted) language model, to start training from it.

    `dataclasses.replace` changes what may differ in it: execution, dtype, adapters.
    """
    return as_trained(run, checkpoints.newest_meta(run), LanguageModelExperiment).model


def load_reader(
    run: str | Path, *, fingerprint: str = "", batch_size: int = 64
) -> tuple[Transcriber, CodesIdentity]:
    """Loads a trained speech tokenizer; returns it with the identity of its codes.

    Args:
      fingerprint: fingerprint that the weights must have; "" accepts any.
    """
    weights, model = load_speech_tokenizer(run, fingerprint=fingerprint)
    identity = _codes_of(weights.meta, model, run)
    reader = Transcriber(model, weights.params, weights.variables, batch_size=batch_size)
    return reader, identity


def load_speech_tokenizer(
    run: str | Path, *, fingerprint: str = ""
) -> tuple[checkpoints.Weights, SpeechTokenizerConfig]:
    """Loads the weights and the config of a speech tokenizer, or of a Whisper.

    Args:
      fingerprint: fingerprint that the weights must have; "" accepts any.
    """
    weights, experiment = _load(run, SpeechTokenizerExperiment)
    _check(weights, run, fingerprint)
    return weights, dataclasses.replace(experiment.model, mel=trained_mel(run))


def trained_codes(run: str | Path) -> CodesIdentity:
    """Returns the identity of a trained speech tokenizer's codes without loading its weights."""
    meta = checkpoint_folder.told_meta(run)
    return _codes_of(meta, as_trained(run, meta, SpeechTokenizerExperiment).model, run)


def _codes_of(
    meta: checkpoint_folder.Meta, model: SpeechTokenizerConfig, run: str | Path
) -> CodesIdentity:
    if model.quantizer is None:
        raise UserError(
            f"{run}: is a Whisper: it has no codebook and makes no codes; give a speech tokenizer"
        )
    return CodesIdentity(meta_fingerprint(meta), model.frame_rate_hz, model.quantizer.codebook_size)


def trained_mel(run: str | Path) -> MelConfig:
    """Returns the mel settings of the frames that a speech tokenizer or decoder was trained on."""
    meta = checkpoint_folder.told_meta(run)
    experiment = experiment_from_json(meta.config, str(run))
    model, mel = experiment.model, WHISPER
    if isinstance(model, LanguageModelConfig):
        raise UserError(f"{run}: is a language model, which reads no mel frames")
    told: Any = meta.described
    for name in ("features", "config", "mel"):
        told = told.get(name) if isinstance(told, dict) else None
    if told is not None:
        mel = configs.from_json(MelConfig, told)
    elif isinstance(model, SpeechTokenizerConfig):
        mel = model.mel
    bins = model.encoder.num_mels if isinstance(model, SpeechTokenizerConfig) else model.num_mels
    if mel.num_mels != bins:
        raise UserError(f"{run}: an earlier version did not keep its mel settings; train it again")
    return mel


def load_inference(
    run: str | Path,
    *,
    kind: ModelKind | None = None,
    vocab: Vocab | None = None,
    fingerprint: str = "",
    batch_size: int = 64,
    sayable: IdSet | None = None,
    mesh: Mesh | None = None,
) -> tuple[Inference, LanguageModelExperiment]:
    """Loads a trained language or text-to-token model from its run or one of its checkpoints.

    Args:
      sayable: the only ids that it will be asked to say; None: any.
      mesh: devices onto which it is read and over which requests are split; None: one device.

    Raises:
      UserError: it is not of this `kind`, was trained with another vocabulary than `vocab`, or has
        another `fingerprint` ("" accepts any).
    """
    weights, _ = load_language_model(run, mesh=mesh)
    experiment = trained_language_model(run, weights.meta, kind=kind, vocab=vocab)
    _check(weights, run, fingerprint)
    inference = Inference(
        experiment.model, weights.params, batch_size=batch_size, vocab_subset=sayable, mesh=mesh
    )
    return inference, experiment


def load_speech_decoder(
    run: str | Path, *, tokenizer: str | None = None, fingerprint: str = "", batch_size: int = 32
) -> tuple[SpeechDecoder, SpeechDecoderExperiment]:
    """Loads a trained speech decoder.

    Raises:
      UserError: it was trained on codes of another `tokenizer`, or has another `fingerprint` (""
        accepts any).
    """
    weights, experiment = _load(run, SpeechDecoderExperiment)
    if tokenizer is not None:
        require(weights.meta, run, {"tokenizer": tokenizer})
    _check(weights, run, fingerprint)
    return SpeechDecoder(experiment.model, weights.params, batch_size=batch_size), experiment


def trained_language_model(
    run: str | Path,
    meta: checkpoint_folder.Meta,
    *,
    kind: ModelKind | None = None,
    vocab: Vocab | None = None,
) -> LanguageModelExperiment:
    """Returns the experiment of a language or text-to-token model, from its metadata alone.

    Raises:
      UserError: it is not of this `kind`, or was trained with another vocabulary than `vocab`.
    """
    experiment = as_trained(run, meta, LanguageModelExperiment)
    if kind is not None and experiment.kind != kind:
        raise UserError(f"{run}: is a model of kind {experiment.kind}; give one of kind {kind}")
    if vocab is not None:
        tokenizer = vocab.tokenizer_fingerprint
        require(meta, run, {"vocabulary": vocab.fingerprint, "tokenizer": tokenizer})
    return experiment


def held_out_losses(
    run: str | Path,
    *,
    mixture: str | Path | None = None,
    most_rows: int = 64,
    mesh: Mesh | None = None,
) -> dict[str, list[RowLoss]]:
    """Returns a language model's losses on held-out rows, by task.

    Args:
      run: a run's folder, or one of its checkpoints.
      mixture: prepared rows; by default those that the model was trained on.
      most_rows: largest number of rows of each task.
      mesh: devices over which the model and the rows are split; None: one device.
    """
    weights, experiment = load_language_model(run, mesh=mesh)
    data, losses = experiment.data, {}
    batch_size = round_up(ROWS_PER_CALL, row_shards(mesh))
    # a run may be scored on another host, which need not have that folder
    cache = data.cache if Path(data.cache).is_dir() else ""
    with RowFetcher(disk_gb=data.disk_gb, folder=cache) as fetcher:
        shards = open_shards(mixture or data.mixture, split="validation", fetcher=fetcher)
        for task, rows in shards.items():
            require(weights.meta, run, {"vocabulary": rows.vocab.fingerprint})
            batches = read_batches(rows, batch_size=batch_size, most_rows=most_rows)
            found = rows_to_losses(experiment.model, weights.params, batches, mesh=mesh)
            losses[task] = list(islice(found, min(most_rows, len(rows))))
    return losses


def load_language_model(
    run: str | Path, *, mesh: Mesh | None = None
) -> tuple[checkpoints.Weights, LanguageModelExperiment]:
    """Loads the weights and the experiment of a trained language or text-to-token model.

    Args:
      mesh: devices that read the parameters, each its part by `decoding_params.RULES`; None: one
        device reads them all.
    """
    cls = LanguageModelExperiment
    if mesh is None:
        return _load(run, cls)
    weights = checkpoints.load_params(
        run, layout=lambda meta: decoding_params.layout(as_trained(run, meta, cls).model, mesh)
    )
    return weights, as_trained(run, weights.meta, cls)


def save_language_model(
    workdir: str | Path, model: LanguageModelConfig, params: Any, vocab: Vocab, *, weights: str = ""
) -> None:
    """Writes weights from elsewhere as step 0 of a run, for `init_from`, evaluation and decoding.

    Args:
      weights: identity of the weights; "" leaves it out.

    Raises:
      UserError: the folder holds a run already.
    """
    experiment = LanguageModelExperiment(RowsData(mixture=""), model, TrainConfig(total_steps=1))
    identity = {"vocabulary": vocab.fingerprint, "tokenizer": vocab.tokenizer_fingerprint}
    identity |= {"weights": weights} if weights else {}
    _save(workdir, "lm", experiment, TrainState(0, params, {}, {}), identity)


def save_speech_tokenizer(
    workdir: str | Path, model: SpeechTokenizerConfig, params: Any, variables: Any, *, weights: str
) -> None:
    """Writes a speech tokenizer, or a Whisper, from elsewhere: see `save_language_model`."""
    experiment = SpeechTokenizerExperiment(ClipsData(""), model, TrainConfig(total_steps=1))
    state = TrainState(0, params, variables, {})
    _save(workdir, "speech_tokenizer", experiment, state, {"weights": weights})


def _save(
    workdir: str | Path, stage: str, experiment: Any, state: TrainState, identity: dict[str, str]
) -> None:
    data = configs.to_json(experiment)
    meta = checkpoint_folder.Meta(
        stage=stage,
        step=0,
        rows_seen=0,
        identity=identity,
        config=data,
        fingerprint=configs.fingerprint(data),
        timing={},
    )
    with FolderLock(workdir) as lock:
        if checkpoints.latest_good(workdir) is not None:
            raise UserError(f"{workdir}: holds a run already; give a new folder")
        writer = checkpoints.CheckpointWriter(workdir, confirm=lock.confirm)
        writer.save(state, meta)
        writer.close()


def run_fingerprint(run: str | Path) -> str:
    """Returns the identity of the newest weights of a run, or of one of its checkpoints."""
    return meta_fingerprint(checkpoint_folder.told_meta(run))


def meta_fingerprint(meta: checkpoint_folder.Meta) -> str:
    """Returns the identity of trained weights: of their config, data and number of steps."""
    return configs.fingerprint({"config": meta.fingerprint, "step": meta.step, **meta.identity})


def as_trained(run: str | Path, meta: checkpoint_folder.Meta, cls: type) -> Any:
    """Returns the experiment of a checkpoint; UserError if it is not of class `cls`."""
    experiment = experiment_from_json(meta.config, str(run))
    if not isinstance(experiment, cls):
        raise UserError(f"{run}: holds a {type(experiment).__name__}, not a {cls.__name__}")
    return experiment


def _load(run: str | Path, cls: type) -> tuple[checkpoints.Weights, Any]:
    weights = checkpoints.load_params(run)
    return weights, as_trained(run, weights.meta, cls)


def _check(weights: checkpoints.Weights, run: str | Path, fingerprint: str) -> None:
    """Raises UserError if the weights are not those that a bundle was made of."""
    found = meta_fingerprint(weights.meta)
    if fingerprint not in ("", found):
        raise UserError(
            f"{run}: holds weights {found}, the bundle has {fingerprint}: it was trained on, or "
            "again; write the bundle anew (`speechlm bundle make`, `speechlm bundle upgrade`)"
        )


def require(meta: checkpoint_folder.Meta, run: str | Path, wanted: dict[str, str]) -> None:
    """Raises UserError, naming both sides, if weights were trained with other than `wanted`."""
    for name, value in wanted.items():
        found = meta.identity.get(name)
        if found != value:
            raise UserError(
                f"{run}: was trained with {name} {found}, the data and models beside it have "
                f"{value}; use a checkpoint and a run that belong together"
            )
