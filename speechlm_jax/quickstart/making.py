"""The steps that make data and models, from the world's audio to the fine-tuned chat."""

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.audio.corpus import corpus
from speechlm_jax.audio.espeak import make_voices
from speechlm_jax.audio.features import write_features
from speechlm_jax.bundle.models import spans_to_codes
from speechlm_jax.codes import read_codes
from speechlm_jax.experiment.configs import (
    ClipsData,
    LanguageModelExperiment,
    ModelKind,
    RowsData,
    SpeechDecoderExperiment,
    SpeechTokenizerExperiment,
)
from speechlm_jax.experiment.processes import Run, train_all
from speechlm_jax.interleave.build import DOCUMENTS, document_to_interleaved
from speechlm_jax.nn.language_model import LanguageModelConfig
from speechlm_jax.quickstart import corpora, data
from speechlm_jax.quickstart.run import Chain, Quickstart
from speechlm_jax.quickstart.sizes import TrainingSize
from speechlm_jax.speech_tokenizer.encode_corpus import features_to_codes
from speechlm_jax.text import TextTokenizer
from speechlm_jax.vocab import Vocab
from speechlm_jax.world.world import Kind

SPOKEN_KINDS = {
    "strings": ("string",),
    "sentences": ("sentence",),
    "passages": ("passage",),
    "dialogues": ("dialogue_question", "reply"),
    "evaluation": ("eval_string", "eval_sentence", "unseen_word", "question", "answer", "story"),
}
_log = logging.getLogger("speechlm.quickstart")


def speak(q: Quickstart) -> None:
    """Writes the world, its clips (eSpeak audio), their log-mel frames and the text vocabulary."""
    tables = q.world.tables
    artifacts.write_json(q.folders.world, configs.to_json(q.world))
    voices = make_voices(q.seed)
    corpus(corpora.clips(q.world, voices, q.config.corpus, seed=q.seed), q.folders.clips)
    write_features(q.folders.clips, q.folders.features, q.mel)
    TextTokenizer.train([" ".join(tables.words)], kind="word").save(q.folders.text_model)


def train_tokenizer(q: Chain) -> None:
    """Trains the speech tokenizer on the training clips."""
    size = q.config.tokenizer_training
    buckets = dataclasses.replace(q.buckets, batch_size=size.batch_size, seed=q.seed)
    experiment = SpeechTokenizerExperiment(
        ClipsData(str(q.folders.features), str(q.folders.text_model), buckets=buckets),
        q.config.tokenizer,
        size.config(seed=q.seed),
    )
    run = Run("tokenizer", experiment, q.folders.tokenizer, q.tokenizer_inputs())
    train_all([run], threads=2)
    q.write_bundle()


def encode(q: Quickstart) -> None:
    """Writes the codes of every clip and lists them as sources."""
    encode_groups(q, "kind", SPOKEN_KINDS)
    data.add_sources(
        q.folders.sources,
        {
            "speech": ["codes/strings"],
            "pairs": ["codes/strings"],
            "voiced": ["codes/strings", "codes/sentences", "codes/passages"],
        },
    )


def encode_groups(q: Chain, field: str, groups: Mapping[str, tuple[str, ...]]) -> None:
    """Writes a codes folder for each group: clips whose `field` has one of the group's values."""
    with tqdm(total=len(q.features), desc="codes", unit="clip") as bar:
        for name, values in groups.items():
            features_to_codes(
                q.features, q.models.reader, q.codes(name), identity=q.models.codes,
                keep=lambda row, values=values: row[field] in values, progress=bar.update,
            )  # fmt: skip


def train_from_codes(q: Chain) -> None:
    """Trains the text-to-token model and the speech decoder at the same time."""
    q.folders.prepared.mkdir(exist_ok=True)
    (mixture,) = _prepare(q, [data.TEXT_TO_TOKEN], ("voiced",), q.voiced_vocab)
    codes = q.codes(q.pairs)
    size = q.config.speech_decoder_training
    buckets = dataclasses.replace(q.buckets, batch_size=size.batch_size, seed=q.seed)
    clips = ClipsData(
        str(q.folders.features), codes=str(codes), kinds=q.pair_kinds, buckets=buckets
    )
    decoder = SpeechDecoderExperiment(clips, q.config.speech_decoder, size.config(seed=q.seed))
    inputs = {"codes": q.fingerprint(codes)}
    text_to_token = _rows_experiment(
        q, mixture, q.config.text_to_token, q.config.text_to_token_training, kind="text_to_token"
    )
    train_all(
        [
            Run("text_to_token", text_to_token, q.folders.text_to_token, _mixture_inputs(mixture)),
            Run("speech_decoder", decoder, q.folders.speech_decoder, inputs),
        ],
        threads=1,
    )
    q.write_bundle()


def interleave(q: Quickstart) -> None:
    """Writes documents about facts, and turns spans of those to be interleaved into codes."""
    size = q.config.corpus
    told: tuple[tuple[str, tuple[Kind, ...], int], ...] = (
        ("interleaved", ("interleaved", "new_wording"), size.documents),
        ("text", ("text_only",), size.text_documents),
    )
    for name, kinds, number in told:
        rows = corpora.documents(
            q.world, kinds, number, words=size.document_words, seed=q.seed, name=name
        )
        spoken = ({**row, "speaker": q.voices[i % len(q.voices)]} for i, row in enumerate(rows))
        data.write_rows(
            q.folders.documents / name, "documents", DOCUMENTS, spoken,
            inputs={"world": q.world.fingerprint}, config=[number, size.document_words],
        )  # fmt: skip
    rows = artifacts.read_jsonl(q.folders.documents / "interleaved" / DOCUMENTS)
    interleave_documents(q, rows, number=size.documents)


def interleave_documents(q: Chain, documents: Iterable[dict[str, Any]], *, number: int) -> None:
    """Turns spans of `number` documents into codes; adds text and interleaved rows as sources."""
    with tqdm(total=number, desc="interleave", unit="document") as bar:
        manifest = document_to_interleaved(
            documents,
            lambda requests: spans_to_codes(q.text_to_token, requests),
            say=q.models.say,
            out=q.folders.interleaved,
            config=dataclasses.replace(q.config.interleave, seed=q.seed),
            inputs={
                "documents": q.fingerprint(q.folders.documents / "interleaved"),
                "text_to_token": q.fingerprint(q.folders.text_to_token),
                "synthesis": configs.fingerprint(q.config.synthesis),
            },
            codes=q.models.codes,
            progress=bar.update,
        )
    _log.info("span corruption ratio that came out: %.3f", manifest.counts["ratio"])
    data.add_sources(
        q.folders.sources,
        {"text": ["documents/text/documents.jsonl"], "interleaved": ["interleaved"]},
    )


def pretrain(q: Chain) -> None:
    """Pre-trains the run's arms at the same time.

    They have the same initial weights, settings and budget; only their rows differ.
    """
    runs = []
    kinds = ("text", "speech", "pairs", "interleaved")
    mixtures = _prepare(q, [f"quickstart_{arm}" for arm in q.arms], kinds, q.models.vocab)
    for arm, mixture in zip(q.arms, mixtures, strict=True):
        experiment = _rows_experiment(q, mixture, q.config.lm, q.config.lm_training)
        runs.append(
            Run(f"lm_{arm}", experiment, getattr(q.folders, f"lm_{arm}"), _mixture_inputs(mixture))
        )
    train_all(runs, threads=2 // len(runs))
    q.write_bundle()


def fine_tune(q: Quickstart) -> None:
    """Fine-tunes the interleaved arm on spoken dialogues about half of the people.

    Strings that the assistant reads aloud are in the same mixture.
    """
    for name, codes, rows in (
        ("dialogues", "dialogues", _dialogues(q)),
        ("read_aloud", q.pairs, _read_aloud(q)),
    ):
        spoken = artifacts.read_manifest(q.codes(codes))
        inputs = {"spoken": spoken.fingerprint, "world": q.world.fingerprint}
        data.write_rows(
            getattr(q.folders, name), "dialogues", "dialogues.jsonl", rows,
            inputs=inputs, config=[], extra=spoken.extra,
        )  # fmt: skip
        data.add_sources(q.folders.sources, {name: [name]})
    (mixture,) = _prepare(q, ["quickstart_sft"], ("dialogues", "read_aloud"), q.models.vocab)
    experiment = _rows_experiment(q, mixture, q.config.lm, q.config.chat_training)
    train = dataclasses.replace(experiment.train, init_from=str(q.folders.lm_interleaved))
    inputs = {**_mixture_inputs(mixture), "lm": q.fingerprint(q.folders.lm_interleaved)}
    run = Run("chat", dataclasses.replace(experiment, train=train), q.folders.chat, inputs)
    train_all([run], threads=2)
    q.write_bundle()


def _read_aloud(q: Quickstart) -> Iterator[dict[str, Any]]:
    """Yields dialogues in which the user writes a string of words and the assistant says it."""
    for row in read_codes(q.codes(q.pairs)):
        written = {"text": row["text"]}
        reply = [written, {"codes": row["codes"], "text": row["text"]}]
        yield {"id": row["id"], "split": row["split"], "turns": _turns([written], reply)}


def _turns(asked: list[dict[str, Any]], reply: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"role": "user", "segments": asked}, {"role": "assistant", "segments": reply}]


def _dialogues(q: Quickstart) -> Iterator[dict[str, Any]]:
    """Yields each spoken question twice: with a reply in speech, and in text followed by speech."""
    facts = {fact.id: fact for fact in q.world.facts}
    rows = list(read_codes(q.codes("dialogues")))
    spoken = {row["text"]: row["codes"] for row in rows if row["kind"] == "reply"}
    for row in rows:
        if row["kind"] != "dialogue_question":
            continue
        text = f"{q.world.tables.answer_lead} {facts[row['fact']].value}"
        said = {"codes": spoken[text], "text": text}
        asked = {"codes": row["codes"], "text": row["text"]}
        for mode, reply in (("speech_only", [said]), ("text_guided", [{"text": text}, said])):
            yield {"id": f"{row['id']}-{mode}", "turns": _turns([asked], reply)}


def _prepare(q: Chain, names: list[str], kinds: Sequence[str], vocab: Vocab) -> list[Path]:
    return data.prepare(
        names, kinds, run=q.folders.run, out=q.folders.prepared, vocab=vocab,
        text_model=q.folders.text_model, length=q.config.row_length, seed=q.seed,
    )  # fmt: skip


def _rows_experiment(
    q: Chain,
    mixture: Path,
    model: LanguageModelConfig,
    size: TrainingSize,
    *,
    kind: ModelKind = "lm",
) -> LanguageModelExperiment:
    rows = RowsData(str(mixture), batch_size=size.batch_size, seed=q.seed)
    return LanguageModelExperiment(rows, model, size.config(seed=q.seed), kind=kind)


def _mixture_inputs(mixture: Path) -> dict[str, str]:
    return {"mixture": artifacts.sha256_file(mixture)}
