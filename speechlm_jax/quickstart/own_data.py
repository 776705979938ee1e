"""A user's recordings and text -> training data of the chain: clips with splits, documents, codes.

A tenth of the recordings is held out: whole speakers if there are enough, so that the figures
describe voices that were not heard in training; otherwise single clips. Transcripts are normalised
(`data.text_norm`); documents keep the text as it is written.
"""

import dataclasses
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from speechlm_jax import artifacts
from speechlm_jax.audio.features import write_features
from speechlm_jax.audio.recordings import BAD, CLIPS, NO_WORDS, Clips, audio_path, read_clips
from speechlm_jax.codes import read_codes
from speechlm_jax.data.clips import BucketConfig
from speechlm_jax.data.content import has_words
from speechlm_jax.data.text_norm import normalize
from speechlm_jax.errors import UserError
from speechlm_jax.interleave.build import DOCUMENTS
from speechlm_jax.quickstart import data, making
from speechlm_jax.quickstart.folders import Folders
from speechlm_jax.quickstart.run import TRAIN, Chain
from speechlm_jax.quickstart.sizes import Size, make_config
from speechlm_jax.quickstart.sizes import TrainingSize as Training
from speechlm_jax.text import TextTokenizer

HELD_OUT = "validation"
HELD_OUT_RATIO = 0.1
MIN_SPEAKERS = 5  # with fewer, clips are held out instead of whole speakers
MIN_CLIPS = 4
EPOCHS = 20  # passes over few recordings; with more, a model only memorises them
FEWEST_STEPS = 500  # the quantizer starts after 300
MIN_WORDS = 80  # in the text
EDGE_MULTIPLE = 32  # mel frames; lengths of batches are rounded up to a multiple of it
SPLITS = {"train": (TRAIN,), "held_out": (HELD_OUT,)}
_log = logging.getLogger("speechlm.quickstart")


@dataclasses.dataclass
class OwnData(Chain):
    """A run on a user's own data.

    Attributes:
      speech: a clip folder (see `audio.recordings`); the rows' `audio` is relative to it.
      text_file: plain text, or .jsonl rows with "text"; either may be gzipped.
      text_size: maximum number of entries of the text vocabulary.
      audio_anywhere: true to allow recordings outside of their folder.
    """

    speech: Path
    text_file: Path
    text_size: int
    audio_anywhere: bool = False
    arms = ("interleaved",)
    pairs = "train"
    pair_kinds = ()

    def audio_of(self, row: dict[str, Any]) -> Path:
        """Returns the recording of a clip's row."""
        return audio_path(self.speech, row["audio"], anywhere=self.audio_anywhere)

    @cached_property
    def buckets(self) -> BucketConfig:
        """Batch settings; the edges are quantiles of the clips' lengths, up to the longest clip."""
        number = len(self.config.buckets.edges)
        ranks = np.linspace(0, 1, number + 1)[1:]
        found = np.ceil(np.quantile(self.features.lengths, ranks) / EDGE_MULTIPLE) * EDGE_MULTIPLE
        edges = tuple(sorted({int(edge) for edge in found}))
        return dataclasses.replace(self.config.buckets, edges=edges)

    @cached_property
    def held_out(self) -> list[dict[str, Any]]:
        """Rows of the held-out clips to be scored: at most `eval_clips`, each with codes."""
        rows = [row for row in read_codes(self.codes("held_out")) if row["codes"]]
        return rows[: self.config.corpus.eval_clips]

    def tokenizer_inputs(self) -> dict[str, str]:
        """Returns the fingerprints of the speech tokenizer's training data."""
        return {**super().tokenizer_inputs(), "text": self.models.text.fingerprint}


def _steps(speech: Path, *, clips: int, most: int) -> int:
    """Returns the steps of a training with about `clips` clips a step: `FEWEST_STEPS` to `most`."""
    rows = sum(1 for line in (speech / CLIPS).read_bytes().splitlines() if line.strip())
    return max(FEWEST_STEPS, min(most, EPOCHS * rows // clips))


def make_own(
    folders: Folders,
    speech: Path,
    text_file: Path,
    *,
    size: Size,
    seed: int,
    audio_anywhere: bool = False,
) -> OwnData:
    """Returns a run on these recordings and this text, which `given.check` has found."""
    base = make_config(size)
    # Clips last up to 30 s: 375 codes and their transcript must fit a row.
    config = dataclasses.replace(base, row_length=512)
    if size == "full":
        config = dataclasses.replace(
            config,
            corpus=dataclasses.replace(
                base.corpus, eval_clips=48, documents=1500, text_documents=1500
            ),
            tokenizer_training=Training(
                steps=_steps(speech, clips=8, most=1000), batch_size=8, optimizer="muon"
            ),
            text_to_token_training=Training(
                steps=_steps(speech, clips=8, most=1500), batch_size=4, optimizer="muon"
            ),
            lm_training=Training(steps=1800, batch_size=4, optimizer="muon"),
            speech_decoder_training=Training(
                steps=_steps(speech, clips=6, most=1000), batch_size=6, peak=2e-3, optimizer="muon"
            ),
        )
    return OwnData(
        folders, config=config, seed=seed, speech=speech, text_file=text_file,
        audio_anywhere=audio_anywhere,
        text_size=1000 if size == "full" else 320,
        clip_batch_size=8,  # attention over 30 s takes 64 times the memory of that over 4 s
    )  # fmt: skip


def read_own(q: OwnData) -> None:
    """Writes clips with splits, their log-mel frames, documents, and one text vocabulary of both.

    The vocabulary is trained on the training split of transcripts and documents.
    """
    marks = {"speech": str(q.speech.resolve()), "text": str(q.text_file.resolve()), "seed": q.seed}
    artifacts.write_json(q.folders.own, marks)
    _write_documents(q)
    clips = read_clips(q.speech, audio_anywhere=q.audio_anywhere)
    rows, wordless = _normalised(clips)
    rows = _with_splits(q, rows)
    artifacts.write_jsonl(q.folders.clips / CLIPS, rows)
    artifacts.write_jsonl(q.folders.clips / BAD, [*clips.bad, *wordless])
    features = write_features(
        q.folders.clips, q.folders.features, q.mel,
        recordings=q.speech, audio_anywhere=q.audio_anywhere,
    )  # fmt: skip
    _check_splits(q, features.rows)
    lines = [row["text"] for row in features.rows if row["split"] == TRAIN]
    for name in ("interleaved", "text"):
        rows_of = artifacts.read_jsonl(q.folders.documents / name / DOCUMENTS)
        lines += [row["text"] for row in rows_of if row["split"] == TRAIN]
    TextTokenizer.train(lines, kind="exact", size=q.text_size).save(q.folders.text_model)
    for row in bad_recordings(q):
        _log.warning("set aside: %s", row["reason"])


def encode(q: OwnData) -> None:
    """Writes the codes of all clips; the text-to-token model gets those of training clips only."""
    making.encode_groups(q, "split", SPLITS)
    both = [f"codes/{name}" for name in SPLITS]
    sources = {"speech": both, "pairs": both, "voiced": ["codes/train"]}
    data.add_sources(q.folders.sources, sources)


def interleave(q: OwnData) -> None:
    """Turns spans of the documents into codes; the documents take the voices in turn."""
    folder = q.folders.documents / "interleaved"
    rows = list(artifacts.read_jsonl(folder / DOCUMENTS))
    voiced = ({**row, "speaker": q.voices[i % len(q.voices)]} for i, row in enumerate(rows))
    making.interleave_documents(q, voiced, number=len(rows))


def bad_recordings(q: OwnData) -> list[dict[str, Any]]:
    """Returns the rows that were set aside, each with a `reason`."""
    folders = (q.folders.clips, q.folders.features)
    return [row for folder in folders for row in artifacts.read_jsonl(folder / BAD)]


def choose_held_out(speakers: Sequence[str], *, seed: int) -> set[int]:
    """Returns the indices of the clips to hold out, given each clip's speaker.

    With five speakers or more, whole speakers (at most half of them) are held out until they have a
    tenth of the clips; with fewer, a tenth of the clips and at least two.
    """
    rng = np.random.default_rng((seed, 0x0E1D))
    counts = Counter(speakers)
    wanted = HELD_OUT_RATIO * len(speakers)
    if len(counts) < MIN_SPEAKERS:
        number = max(2, round(wanted))
        return {int(i) for i in rng.permutation(len(speakers))[:number]}
    chosen: set[str] = set()
    for speaker in rng.permutation(sorted(counts)):
        if sum(counts[name] for name in chosen) < wanted and len(chosen) < len(counts) // 2:
            chosen.add(str(speaker))
    return {i for i, speaker in enumerate(speakers) if speaker in chosen}


def text_to_documents(path: Path, *, words: int) -> list[str]:
    """Cuts a text file (or each "text" of a .jsonl file) into documents of about `words` words.

    A document is an unchanged part of its text, from the beginning of a word to the end of a word.

    Raises:
      UserError: the file is not UTF-8, is not what its suffix says, or has a row without "text".
    """
    documents = []
    for text in _texts(path):
        places = [found.span() for found in re.finditer(r"\S+", text)]
        pieces = max(1, round(len(places) / words))
        ranges = [piece for piece in np.array_split(places, pieces) if len(piece)]
        documents += [text[int(piece[0][0]) : int(piece[-1][1])] for piece in ranges]
    return documents


def _write_documents(q: OwnData) -> None:
    """Writes documents to interleave and documents that stay text; holds out a tenth of each."""
    size = q.config.corpus
    inputs = {"text": artifacts.sha256_file(q.text_file)}
    groups = {"interleaved": size.documents, "text": size.text_documents}
    config = [*groups.values(), size.document_words, "verbatim"]
    if all(
        artifacts.is_current(
            q.folders.documents / name, "documents", inputs=inputs, config={"config": config}
        )
        for name in groups
    ):
        return
    documents = text_to_documents(q.text_file, words=size.document_words)
    words = sum(len(document.split()) for document in documents)
    if words < MIN_WORDS:
        raise UserError(f"{q.text_file}: holds {words} words; give at least {MIN_WORDS}")
    if len(documents) < 8:  # cut a short text into shorter documents, so that each group has some
        documents = text_to_documents(q.text_file, words=max(1, words // 8))
    most = sum(groups.values())
    if len(documents) > most:  # spread over the whole file
        documents = [documents[i] for i in np.linspace(0, len(documents) - 1, most).astype(int)]
    parts = {name: documents[start::2] for start, name in enumerate(groups)}
    for name, part in parts.items():
        last = min(9, len(part) - 1)
        rows = [
            {"id": f"{name}-{i:05d}", "text": text, "split": HELD_OUT if i % 10 == last else TRAIN}
            for i, text in enumerate(part)
        ]
        folder = q.folders.documents / name
        data.write_rows(folder, "documents", DOCUMENTS, rows, inputs=inputs, config=config)


def _texts(path: Path) -> Iterator[str]:
    if ".jsonl" not in path.suffixes:
        yield "\n".join(artifacts.read_lines(path))
        return
    for number, row in artifacts.numbered_jsonl(path):
        if isinstance(row, UserError):
            raise row
        if not isinstance(row.get("text"), str):
            raise UserError(f'{path}:{number}: has no "text"; give rows with one, or a .txt file')
        yield row["text"]


def _normalised(clips: Clips) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns rows with normalised texts, and the rows whose text has no words."""
    rows, bad = [], []
    for row in clips.rows:
        if has_words(row["text"]):
            rows.append({**row, "text": normalize(row["text"])})
        else:
            bad.append({**row, "reason": f"{row['audio']}: {NO_WORDS}"})
    return rows, bad


def _with_splits(q: OwnData, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(rows) < MIN_CLIPS:
        raise UserError(f"{q.speech}: {len(rows)} usable recordings; give at least {MIN_CLIPS}")
    held_out = choose_held_out([row["speaker"] for row in rows], seed=q.seed)
    return [{**row, "split": HELD_OUT if i in held_out else TRAIN} for i, row in enumerate(rows)]


def _check_splits(q: OwnData, rows: Sequence[dict[str, Any]]) -> None:
    counts = Counter(row["split"] for row in rows)
    for split, words in ((TRAIN, "to train on"), (HELD_OUT, "to hold out")):
        if not counts[split]:
            raise UserError(
                f"{q.speech}: no usable recording is left {words}; give more, or another --seed"
            )
