"""Makes stages: experiment -> (experiment with every field resolved, stage for the loop)."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from speechlm_jax import artifacts
from speechlm_jax.audio.recordings import Features
from speechlm_jax.codes import read_codes, read_identity
from speechlm_jax.config import at_least
from speechlm_jax.data.bucket_rows import RowFetcher
from speechlm_jax.data.clips import BucketedClips, clip_batches
from speechlm_jax.data.mixture import open_shards, read_mixture, read_text, task_rows
from speechlm_jax.data.plan import MixturePlan, TaskRows
from speechlm_jax.data.rows import RowShards
from speechlm_jax.data.shares import PhaseSpec, make_plan, rates_to_shares
from speechlm_jax.data.stream import make_batches, read_batches
from speechlm_jax.errors import UserError
from speechlm_jax.experiment.configs import (
    ClipsData,
    Experiment,
    LanguageModelExperiment,
    SpeechDecoderExperiment,
    SpeechTokenizerExperiment,
)
from speechlm_jax.lm import stage as lm_stage
from speechlm_jax.sharding import make_mesh, row_part
from speechlm_jax.speech_decoder import stage as decoder_stage
from speechlm_jax.speech_decoder.batches import CodedClips
from speechlm_jax.speech_tokenizer import stage as tokenizer_stage
from speechlm_jax.speech_tokenizer.batches import TranscribedClips
from speechlm_jax.text import TextTokenizer
from speechlm_jax.text_to_token import stage as text_to_token_stage
from speechlm_jax.train.held_out import HeldOutRows, held_out
from speechlm_jax.train.stage import Evaluation, Stage
from speechlm_jax.vocab_files import vocab_to_files

VOICES = "voices.json"  # beside a speech decoder's checkpoints: names of its voices, from 1 on


def _hosts(given: Experiment) -> dict[str, int]:
    """Returns the part of each batch that this host reads, as keyword arguments of a reader."""
    part = row_part(make_mesh(given.train.mesh))
    return {"process_index": part.index, "process_count": part.count}


def _chosen(data: ClipsData, features: Features) -> list[int]:
    """Returns the indices of the clips that an experiment trains on."""
    return [
        i
        for i, row in enumerate(features.rows)
        if row.get("split", "train") == data.split
        and (not data.kinds or row.get("kind") in data.kinds)
        and row.get("speaker") not in data.not_speakers
    ]


def speech_tokenizer(given: SpeechTokenizerExperiment) -> tuple[SpeechTokenizerExperiment, Stage]:
    """Makes the stage of a speech tokenizer on clips and their transcripts."""
    data = given.data
    features = Features(data.features)
    text = TextTokenizer.load(data.text_vocab)
    model = dataclasses.replace(
        given.model, text_size=given.model.text_size or text.size, mel=features.mel_config
    )
    if model.encoder.num_mels != model.mel.num_mels:
        raise UserError(
            f"model.encoder.num_mels: {model.encoder.num_mels}; the frames of {data.features} have "
            f"{model.mel.num_mels} mel bins"
        )
    resolved = dataclasses.replace(given, model=model)
    clips = TranscribedClips(features, _chosen(data, features), text, augment=data.augment)
    stream = BucketedClips(clips.lengths, data.buckets)
    stage = tokenizer_stage.make_stage(
        model,
        resolved.loss,
        clip_batches(stream, clips.collate, **_hosts(given)),
        identity={"features": features.fingerprint, "text": text.fingerprint},
    )
    described = {"features": _described(features), "text": {"ids": text.size}}
    files = vocab_to_files(None, text.model)
    return resolved, dataclasses.replace(stage, described=described, files=files)


def language_model(given: LanguageModelExperiment) -> tuple[LanguageModelExperiment, Stage]:
    """Makes the stage of a language or text-to-token model on packed rows."""
    data = given.data
    fetcher = RowFetcher(disk_gb=data.disk_gb, folder=data.cache)
    shards = open_shards(data.mixture, fetcher=fetcher)
    tasks = task_rows(shards)
    vocab = next(iter(shards.values())).vocab
    model = dataclasses.replace(given.model, vocab_size=given.model.vocab_size or vocab.size)
    if model.vocab_size < vocab.size:
        raise UserError(
            f"model.vocab_size: {model.vocab_size}; the rows' vocabulary has {vocab.size}"
        )
    plan, total_steps = _plan(given, tasks)
    batches = make_batches(plan, shards, batch_size=data.batch_size, **_hosts(given))
    identity = {"plan": plan.fingerprint, "tokenizer": vocab.tokenizer_fingerprint}
    names = [task.name for task in tasks]
    if given.kind == "text_to_token":
        stage = text_to_token_stage.make_stage(
            model, vocab, batches, identity=identity, z_loss=given.z_loss
        )
    else:
        stage = lm_stage.make_stage(
            model, vocab, names, batches, identity=identity, z_loss=given.z_loss
        )
    unseen = open_shards(data.mixture, split="validation", fetcher=fetcher)
    if unseen:
        stage = dataclasses.replace(stage, evals=(_held_out(given, stage, unseen, names),))
    stage = dataclasses.replace(
        stage,
        progress=lambda rows: _progress(plan, rows),
        described={"plan": plan.described, "vocabulary": vocab.to_json()},
        files=vocab_to_files(vocab, read_text(data.mixture, vocab)),
    )
    resolved = dataclasses.replace(given.train, total_steps=total_steps)
    return dataclasses.replace(given, model=model, train=resolved), stage


def _held_out(
    given: LanguageModelExperiment,
    stage: Stage,
    shards: Mapping[str, RowShards],
    names: Sequence[str],
) -> Evaluation:
    """Makes the evaluation of held-out loss by task; `names` are tasks by their number in a batch.

    Raises:
      UserError: the cache of rows in a bucket is too small.
    """
    batch_size, hosts, tasks = given.data.batch_size, _hosts(given), {}
    part = batch_size // hosts["process_count"]
    for name, rows in shards.items():
        rows.batches_ahead(part)  # raises at the start if the cache is too small
        most = min(given.eval_rows or len(rows), len(rows))
        read = partial(
            read_batches, rows, batch_size=batch_size, task=names.index(name), most_rows=most,
            prefetch=2, **hosts,
        )  # fmt: skip
        tasks[name] = HeldOutRows(most, read)
    return held_out(
        stage.loss, tasks, every_steps=given.eval_every_steps, mesh=make_mesh(given.train.mesh),
        num_microbatches=given.train.num_microbatches,
    )  # fmt: skip


def _plan(given: LanguageModelExperiment, tasks: Sequence[TaskRows]) -> tuple[MixturePlan, int]:
    """Returns the order of a run's rows, and its number of steps."""
    data, steps = given.data, given.train.total_steps
    if not data.phases:
        at_least(given.train, 1, "total_steps")
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
    """Returns the tokens of each task and modality, and its epochs, as figures of a log line."""
    figures: dict[str, float] = {}
    for task in plan.progress(rows_seen):
        figures[f"mixture/{task.name}/text_tokens"] = task.text_tokens
        figures[f"mixture/{task.name}/speech_tokens"] = task.speech_tokens
        figures[f"mixture/{task.name}/epochs"] = task.epochs
    return figures


def speech_decoder(given: SpeechDecoderExperiment) -> tuple[SpeechDecoderExperiment, Stage]:
    """Makes the stage of a flow from the codes of clips to their mel frames."""
    data = given.data
    features = Features(data.features)
    identity = read_identity(data.codes)
    rows = {row["id"]: row for row in read_codes(data.codes)}
    per_code = given.model.mel_frames_per_code
    clips = CodedClips(features, _chosen(data, features), rows, mel_frames_per_code=per_code)
    stream = BucketedClips(clips.lengths, data.buckets)
    mean, deviation = clips.mel_moments()
    model = dataclasses.replace(
        given.model,
        codebook_size=identity.codebook_size,
        num_voices=len(clips.voices),
        mel_mean=mean,
        mel_std=deviation,
    )
    stage = decoder_stage.make_stage(
        model,
        clip_batches(stream, clips.collate, **_hosts(given)),
        identity={"tokenizer": identity.tokenizer, "features": features.fingerprint},
    )
    stage = dataclasses.replace(
        stage,
        described={"features": _described(features)},
        files={VOICES: artifacts.json_to_bytes(list(clips.voices))},
    )
    return dataclasses.replace(given, model=model), stage


def _described(features: Features) -> dict[str, Any]:
    """Returns the data behind a fingerprint of features, except the frames themselves."""
    made = features.manifest
    return {"inputs": made.inputs, "config": made.config, "counts": made.counts}
