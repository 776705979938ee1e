"""The quickstart's steps in order; each is skipped when its output is already there."""

import dataclasses
import fcntl
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.audio.espeak import make_voices
from speechlm_jax.audio.recordings import Features
from speechlm_jax.bulk.corpus import corpus
from speechlm_jax.bulk.features import write_features
from speechlm_jax.chat.dialogue import Chat
from speechlm_jax.data.formats import Writer
from speechlm_jax.errors import UserError
from speechlm_jax.evals.formats import Formats
from speechlm_jax.evals.items import Item, write_items
from speechlm_jax.experiment import (
    ClipsData,
    LanguageModelExperiment,
    RowsData,
    SpeechDecoderExperiment,
    SpeechTokenizerExperiment,
    load_inference,
    load_reader,
    load_speech_decoder,
)
from speechlm_jax.interleave.build import SpanRequest, document_to_interleaved
from speechlm_jax.quickstart import clock, corpora, data, scoring
from speechlm_jax.quickstart.folders import Folders
from speechlm_jax.quickstart.sizes import QuickstartConfig, Size, make_config
from speechlm_jax.quickstart.spoken import Spoken
from speechlm_jax.quickstart.training import Run, train_all
from speechlm_jax.speech_tokenizer.encode_corpus import CODES, features_to_codes
from speechlm_jax.speech_tokenizer.reading import Reader
from speechlm_jax.text import TextTokenizer
from speechlm_jax.text_to_token.synthesize import SpeechRequest, TextToToken
from speechlm_jax.vocab import Vocab
from speechlm_jax.world.tables import load_tables
from speechlm_jax.world.world import World

ARMS = ("interleaved", "baseline")
SPOKEN_KINDS = {
    "strings": ("string",),
    "sentences": ("sentence",),
    "dialogues": ("dialogue_question",),
    "evaluation": ("eval_string", "eval_sentence", "unseen_word", "question", "answer", "story"),
}
_log = logging.getLogger("speechlm.quickstart")


@dataclasses.dataclass
class Quickstart:
    """One run: its folders, its numbers, and what its steps made so far."""

    folders: Folders
    config: QuickstartConfig
    world: World
    seed: int

    @cached_property
    def text(self) -> TextTokenizer:
        """The text vocabulary: the world's words."""
        return TextTokenizer.load(self.folders.text_model)

    @cached_property
    def features(self) -> Features:
        """Mel frames of every clip."""
        return Features(self.folders.features)

    @cached_property
    def reader(self) -> Reader:
        """The trained speech tokenizer."""
        return load_reader(self.folders.tokenizer)[0]

    @cached_property
    def voices(self) -> tuple[str, ...]:
        """Names of the training voices."""
        rows = self.features.rows
        return tuple(sorted({row["speaker"] for row in rows if row["split"] == corpora.TRAIN}))

    @cached_property
    def vocab(self) -> Vocab:
        """The language model's vocabulary."""
        return data.make_vocab(self.text, self.codes("strings"))

    @cached_property
    def voiced_vocab(self) -> Vocab:
        """The text-to-token model's vocabulary: with an id for each training voice."""
        return data.make_vocab(self.text, self.codes("strings"), voices=self.voices)

    @cached_property
    def text_to_token(self) -> TextToToken:
        """The trained text-to-token model."""
        inference, _ = load_inference(self.folders.text_to_token)
        return TextToToken(inference, self.voiced_vocab, self.text, self.config.synthesis)

    @cached_property
    def spoken(self) -> Spoken:
        """The evaluation clips as codes."""
        return Spoken(self.codes("evaluation"), self.world)

    def codes(self, name: str) -> Path:
        """A codes folder."""
        return self.folders.codes / name

    def read(self, codes: Any) -> list[str]:
        """What codes say, by the tokenizer's own reader."""
        clips = [np.asarray(clip, np.int32) for clip in codes]
        return [self.text.decode(ids) for ids in self.reader.codes_to_ids(clips)]

    def fingerprint(self, folder: Path) -> str:
        """Identity of a step's output."""
        return artifacts.read_manifest(folder).fingerprint


def quickstart(
    out: str | Path,
    *,
    size: Size = "full",
    world: str | Path | None = None,
    speech: str | Path | None = None,
    text: str | Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Runs every step in `out` and returns where the report lies and what it says in short.

    Raises:
      UserError: something in the inputs; what was made stays.
      Stopped: SIGINT or SIGTERM; the same command goes on.
    """
    if speech is not None or text is not None:
        raise UserError("--speech and --text: give both or neither")
    run = Path(out)
    run.mkdir(parents=True, exist_ok=True)
    with _locked(run):
        made = Quickstart(
            Folders(run), make_config(size), World.make(load_tables(world), seed), seed
        )
        for number, (name, step) in enumerate(STEPS, 1):
            _log.info("step %d of %d: %s", number, len(STEPS), name.replace("_", " "))
            with clock.timed(made.folders.timing, name):
                step(made)
    return {"report": str(run / "report.html"), "figures": str(run / "report.json")}


def speak(q: Quickstart) -> None:
    """World, clips of real eSpeak audio, log-mel frames and the text vocabulary."""
    tables = q.world.tables
    facts = [dataclasses.asdict(fact) for fact in q.world.facts]
    artifacts.write_json(q.folders.world, {"seed": q.seed, "facts": facts})
    voices = make_voices(q.seed)
    corpus(corpora.clips(q.world, voices, q.config.corpus, seed=q.seed), q.folders.clips)
    write_features(q.folders.clips, q.folders.features)
    TextTokenizer.train([" ".join(tables.words)], kind="word").save(q.folders.text_model)


def train_tokenizer(q: Quickstart) -> None:
    """Speech tokenizer on the TTS corpus."""
    size = q.config.tokenizer_training
    buckets = dataclasses.replace(q.config.buckets, batch_size=size.batch_size, seed=q.seed)
    experiment = SpeechTokenizerExperiment(
        ClipsData(str(q.folders.features), str(q.folders.text_model), buckets=buckets),
        q.config.tokenizer,
        size.config(seed=q.seed),
    )
    inputs = {"features": q.features.fingerprint}
    train_all([Run("tokenizer", experiment, q.folders.tokenizer, inputs)], threads=2)


def encode(q: Quickstart) -> None:
    """Codes of every clip."""
    reader, _, fingerprint = load_reader(q.folders.tokenizer)
    with tqdm(total=len(q.features), desc="codes", unit="clip") as bar:
        for name, kinds in SPOKEN_KINDS.items():
            features_to_codes(
                q.features, reader, q.codes(name), tokenizer=fingerprint,
                keep=lambda row, kinds=kinds: row["kind"] in kinds, progress=bar.update,
            )  # fmt: skip
    data.add_sources(
        q.folders.sources,
        {"speech": ["codes/strings"], "pairs": ["codes/strings"], "voiced": ["codes/strings", "codes/sentences"]},
    )


def train_from_codes(q: Quickstart) -> None:
    """Text-to-token model and speech decoder, side by side."""
    q.folders.prepared.mkdir(exist_ok=True)
    mixture = _prepare(q, "q_text_to_token", q.voiced_vocab)
    size, buckets = q.config.speech_decoder_training, q.config.buckets
    buckets = dataclasses.replace(buckets, batch_size=size.batch_size, seed=q.seed)
    clips = ClipsData(str(q.folders.features), codes=str(q.codes("strings")), kinds=("string",), buckets=buckets)
    decoder = SpeechDecoderExperiment(clips, q.config.speech_decoder, size.config(seed=q.seed))
    inputs = {"codes": q.fingerprint(q.codes("strings"))}
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


def interleave(q: Quickstart) -> None:
    """Documents of facts, and spans of them turned into codes."""
    size = q.config.corpus
    for name, kinds, number in (
        ("interleaved", ("interleaved", "new_wording"), size.documents),
        ("text", ("text_only",), size.text_documents),
    ):
        rows = corpora.documents(
            q.world, kinds, number, words=size.document_words, seed=q.seed, name=name
        )
        spoken = ({**row, "speaker": q.voices[i % len(q.voices)]} for i, row in enumerate(rows))
        data.write_rows(
            q.folders.documents / name, "documents", "documents.jsonl", spoken,
            inputs={"world": q.world.fingerprint, "text_to_token": ""}, config=[number, size.document_words],
        )  # fmt: skip
    documents = q.folders.documents / "interleaved" / "documents.jsonl"
    with tqdm(total=size.documents, desc="interleave", unit="document") as bar:
        manifest = document_to_interleaved(
            artifacts.read_jsonl(documents),
            lambda requests: _spans_to_codes(q, requests),
            out=q.folders.interleaved,
            config=dataclasses.replace(q.config.interleave, seed=q.seed),
            inputs={
                "documents": q.fingerprint(q.folders.documents / "interleaved"),
                "text_to_token": q.fingerprint(q.folders.text_to_token),
                "synthesis": configs.fingerprint(q.config.synthesis),
            },
            tokenizer=artifacts.read_manifest(q.codes("strings")).extra,
            progress=bar.update,
        )
    _log.info("span corruption ratio that came out: %.3f", manifest.counts["ratio"])
    data.add_sources(
        q.folders.sources,
        {"text": ["documents/text/documents.jsonl"], "interleaved": ["interleaved"]},
    )


def pretrain(q: Quickstart) -> None:
    """The two arms, side by side: same weights, settings and budget; only rows differ."""
    runs = []
    for arm in ARMS:
        mixture = _prepare(q, f"quickstart_{arm}", q.vocab)
        experiment = _rows_experiment(q, mixture, q.config.lm, q.config.lm_training)
        runs.append(Run(f"lm_{arm}", experiment, getattr(q.folders, f"lm_{arm}"), _mixture_inputs(mixture)))
    train_all(runs, threads=1)


def fine_tune(q: Quickstart) -> None:
    """The interleaved arm on spoken dialogues about half of the people."""
    data.write_rows(
        q.folders.dialogues, "dialogues", "dialogues.jsonl", _dialogues(q),
        inputs={
            "questions": q.fingerprint(q.codes("dialogues")),
            "text_to_token": q.fingerprint(q.folders.text_to_token),
        },
        config=[],
        extra=artifacts.read_manifest(q.codes("dialogues")).extra,
    )  # fmt: skip
    data.add_sources(q.folders.sources, {"dialogues": ["dialogues"]})
    mixture = _prepare(q, "quickstart_chat", q.vocab)
    experiment = _rows_experiment(q, mixture, q.config.lm, q.config.chat_training)
    train = dataclasses.replace(experiment.train, init_from=str(q.folders.lm_interleaved))
    inputs = {**_mixture_inputs(mixture), "lm": q.fingerprint(q.folders.lm_interleaved)}
    run = Run("chat", dataclasses.replace(experiment, train=train), q.folders.chat, inputs)
    train_all([run], threads=2)


def score(q: Quickstart) -> None:
    """Every figure, as scored items."""
    _score(q, "tokenizer", [q.folders.tokenizer], lambda: scoring.tokenizer_items(
        q.spoken, q.read, q.reader, seed=q.seed))  # fmt: skip
    _score(q, "text_to_token", [q.folders.text_to_token], lambda: _text_to_token_items(q))
    _score(q, "speech_decoder", [q.folders.speech_decoder], lambda: _decoder_items(q))
    for arm in ARMS:
        folder = getattr(q.folders, f"lm_{arm}")
        _score(q, f"lm_{arm}", [folder], lambda arm=arm, folder=folder: scoring.lm_items(
            arm, q.spoken, load_inference(folder)[0], Formats(q.vocab, q.text), q.read, seed=q.seed))  # fmt: skip
    _score(q, "chat", [q.folders.chat], lambda: _chat_items(q))


def _score(q: Quickstart, name: str, models: list[Path], make: Callable[[], list[Item]]) -> None:
    """Scores a group unless it is scored; its items replace those of an earlier model."""
    folder = q.folders.items / name
    inputs = {model.name: q.fingerprint(model) for model in models}
    inputs["evaluation"] = q.fingerprint(q.codes("evaluation"))
    if artifacts.is_current(folder, "items", inputs=inputs, config={}, seed=q.seed):
        return
    _log.info("scoring %s", name)
    files = write_items(folder, make())
    artifacts.write_manifest(folder, "items", inputs=inputs, config={}, seed=q.seed, files=files)


def _text_to_token_items(q: Quickstart) -> list[Item]:
    known = {row["text"] for row in q.features.rows if row["split"] == corpora.TRAIN}
    texts = {
        f"text_to_token/wer{suffix}": corpora.unseen_texts(
            q.world, kind, q.config.corpus.eval_clips, known=known, seed=q.seed + 1
        )
        for suffix, kind in (("", "sentence"), ("_strings", "string"))
    }
    return scoring.text_to_token_items(texts, q.text_to_token, q.read, voices=q.voices, seed=q.seed)


def _decoder_items(q: Quickstart) -> list[Item]:
    raise NotImplementedError


def _chat_items(q: Quickstart) -> list[Item]:
    inference, _ = load_inference(q.folders.chat)
    chat = Chat(inference, Writer(q.vocab, q.text))
    told = corpora.told_people(q.world)
    asked = [x for x in q.spoken.questions() if x.fact.split("/")[0] not in told]
    return scoring.chat_items(asked, chat, q.read, seed=q.seed)


def _dialogues(q: Quickstart) -> Iterator[dict[str, Any]]:
    """Each spoken question with both replies: speech alone, and text and then speech."""
    facts = {fact.id: fact for fact in q.world.facts}
    rows = list(artifacts.read_jsonl(q.codes("dialogues") / CODES))
    replies = [f"{q.world.tables.answer_lead} {facts[row['fact']].value}" for row in rows]
    voice = q.voices[0]
    requests = [SpeechRequest(text, voice, seed=i) for i, text in enumerate(replies)]
    for row, text, codes in zip(rows, replies, q.text_to_token.text_to_codes(requests), strict=True):
        if not len(codes):
            continue
        said = {"codes": codes.tolist(), "text": text}
        for mode, reply in (("speech_only", [said]), ("text_guided", [{"text": text}, said])):
            asked = {"codes": row["codes"], "text": row["text"]}
            turns = [{"role": "user", "segments": [asked]}, {"role": "assistant", "segments": reply}]
            yield {"id": f"{row['id']}-{mode}", "turns": turns}


def _spans_to_codes(q: Quickstart, requests: list[SpanRequest]) -> list[list[int]]:
    spoken = [
        SpeechRequest(r.text, r.speaker, seed=int(configs.fingerprint([r.document, r.number])[:8], 16))
        for r in requests
    ]
    return [codes.tolist() for codes in q.text_to_token.text_to_codes(spoken)]


def _prepare(q: Quickstart, name: str, vocab: Vocab) -> Path:
    return data.prepare(
        name, run=q.folders.run, out=q.folders.prepared, vocab=vocab,
        text_model=q.folders.text_model, length=q.config.row_length, seed=q.seed,
    )  # fmt: skip


def _rows_experiment(
    q: Quickstart, mixture: Path, model: Any, size: Any, *, kind: str = "lm"
) -> LanguageModelExperiment:
    rows = RowsData(str(mixture), batch_size=size.batch_size, seed=q.seed)
    return LanguageModelExperiment(rows, model, size.config(seed=q.seed), kind=kind)


def _mixture_inputs(mixture: Path) -> dict[str, str]:
    return {"mixture": artifacts.sha256_file(mixture)}


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Two processes in one run folder would harm each other; the second is refused."""
    with open(run / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{run}: another quickstart is running in it; wait, or give another --out") from None
        yield


STEPS: tuple[tuple[str, Callable[[Quickstart], None]], ...] = (
    ("corpora", speak),
    ("tokenizer", train_tokenizer),
    ("codes", encode),
    ("text_to_token_and_decoder", train_from_codes),
    ("interleave", interleave),
    ("pretrain", pretrain),
    ("chat", fine_tune),
    ("evaluate", score),
)
