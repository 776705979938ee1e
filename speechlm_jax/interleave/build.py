"""Turns plain text into interleaved speech-text documents, without any audio.

Text stays as it is written, to the last blank: joining the "text" of a document's segments gives
the document back. Only spoken words are normalised, in "said" beside the text.
"""

import dataclasses
import itertools
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.codes import CodesIdentity
from speechlm_jax.errors import UserError
from speechlm_jax.interleave.documents import BAD, document_digest
from speechlm_jax.interleave.spans import LONGEST_MEAN, NUM_KEYS
from speechlm_jax.interleave.words import Lexicon, Plan, Say, choose_spans
from speechlm_jax.jobs.commit import SHARDS, Shard, clear
from speechlm_jax.jobs.shards import iter_shards, join_files, total

KIND = "interleaved"
DOCUMENTS = "documents.jsonl"
VERSION = "2"  # of this room's rules: what another version made, finished or not, is made again
_CHUNK_CHARACTERS = 1 << 18  # of which words are in memory at a time; more for a longer document
_OLD_PARTS = f"parts-{'[0-9a-f]' * 16}"  # folders of unfinished builds by an earlier version
_log = logging.getLogger("speechlm.interleave")


@dataclasses.dataclass(frozen=True)
class InterleaveConfig:
    """Settings for interleaving documents (Zeng et al., section 2.2).

    Attributes:
      span_corruption_ratio: fraction of the sayable words that become speech.
      mean_span_length: mean of the Poisson distribution, in words.
      seed: seed that decides, with a document's id and text, the document's spans and their seeds.
      batch_documents: documents whose spans one call turns into codes; each batch is a shard, at
        which an interrupted build continues.
    """

    span_corruption_ratio: float = 0.3
    mean_span_length: float = 10.0
    seed: int = 0
    batch_documents: int = 256

    def __post_init__(self) -> None:
        configs.at_least(self, 0, "span_corruption_ratio", most=1)
        configs.above_0(self, "mean_span_length", most=LONGEST_MEAN)
        configs.at_least(self, 0, "seed", most=2**63 - 1)
        configs.at_least(self, 1, "batch_documents")


class SpanRequest(NamedTuple):
    """A span to turn into codes.

    Attributes:
      text: text to say.
      speaker: the document's "speaker", so that one voice speaks a document; "" if it has none.
      seed: seed of the span's sampling, 0 to 2^32-1, from the document and the config's seed.
    """

    text: str
    speaker: str
    seed: int


SpansToCodes = Callable[[list[SpanRequest]], Sequence[Sequence[int]]]


def document_to_interleaved(
    documents: Iterable[dict[str, Any]],
    text_to_codes: SpansToCodes,
    *,
    say: Say,
    out: str | Path,
    config: InterleaveConfig,
    inputs: dict[str, str],
    codes: CodesIdentity,
    bad: Sequence[dict[str, Any]] = (),
    progress: Callable[[int], object] = lambda documents: None,
) -> artifacts.Manifest:
    """Writes the interleaved folder of documents; a finished one of the same inputs is kept.

    A span stays text if `text_to_codes` gives no codes for it, and so do words that cannot be said.

    Args:
      documents: rows {"id", "text", ...}; all other fields are carried over.
      text_to_codes: requests -> codes of each, in order. The codes of a request should depend on
        that request alone, or a restart changes the result.
      say: word of a text -> its spoken form; "" if nothing is said, None if it cannot be said.
      out: the folder: `documents.jsonl`, `bad.jsonl`, `stage.json`.
      config: ratio, span lengths, seed.
      inputs: fingerprints of the documents, and of the sources of `text_to_codes` and `say`.
      codes: identity of the codes.
      bad: rows that were set aside, each with a "reason" (`documents.good_documents`).
      progress: called with the number of documents of each finished batch.

    Returns:
      The manifest; `counts["ratio"]` is the fraction of words that became speech, and
      `counts["sayable_ratio"]` that of the words that can be said.

    Raises:
      UserError: a document has no id or text, or the id of an earlier one.
    """
    out = Path(out)
    inputs = {**inputs, "rules": VERSION}
    _drop_old_parts(out)
    if artifacts.is_current(out, KIND, inputs=inputs, config=config, seed=config.seed):
        clear(out)
        return artifacts.read_manifest(out)
    lexicon, made = Lexicon(say), []
    for shard in iter_shards(
        lambda batch, path: _write_batch(batch, text_to_codes, lexicon, config, path),
        _batches(documents, config.batch_documents),
        folder=out / SHARDS,
        fingerprint=configs.fingerprint({"inputs": inputs, "config": config}),
    ):
        made.append(shard)
        progress(total([shard], "documents"))
    counts = InterleaveCounts.of(made, bad=len(bad))
    (out / artifacts.MANIFEST).unlink(missing_ok=True)  # of older contents
    join_files([shard.path for shard in made], out / DOCUMENTS)
    artifacts.write_jsonl(out / BAD, bad)
    manifest = artifacts.write_manifest(
        out, KIND, inputs=inputs, config=config, seed=config.seed,
        counts=counts.to_json(), files=[DOCUMENTS, BAD], extra=codes.to_json(),
    )  # fmt: skip
    clear(out)
    return manifest


def _drop_old_parts(out: Path) -> None:
    """Removes unfinished builds by an earlier version."""
    for folder in out.glob(_OLD_PARTS):
        _log.info("%s: is of an unfinished build by an earlier version; made anew", folder)
        shutil.rmtree(folder)


@dataclasses.dataclass
class InterleaveCounts:
    """Counts of words by what became of them; words for which nothing is said are not counted."""

    documents: int = 0
    words: int = 0
    unsayable_words: int = 0
    speech_words: int = 0
    spans: int = 0
    failed_spans: int = 0
    codes: int = 0
    bad: int = 0

    @classmethod
    def of(cls, shards: Sequence[Shard], *, bad: int) -> "InterleaveCounts":
        """Returns the counts of all shards together, and of rows that were set aside."""
        names = [field.name for field in dataclasses.fields(cls) if field.name != "bad"]
        return cls(**{name: total(shards, name) for name in names}, bad=bad)

    def counting(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yields finished documents and counts them."""
        for row in rows:
            self.documents += 1
            for name, count in row["counts"].items():
                setattr(self, name, getattr(self, name) + count)
            self.codes += sum(len(segment.get("codes", ())) for segment in row["segments"])
            yield row

    def to_json(self) -> dict[str, Any]:
        """Returns the counts with the ratios that came out."""
        sayable = self.words - self.unsayable_words
        return dataclasses.asdict(self) | {
            "ratio": self.speech_words / max(self.words, 1),
            "sayable_ratio": self.speech_words / max(sayable, 1),
        }


def _write_batch(
    batch: Sequence[dict[str, Any]],
    text_to_codes: SpansToCodes,
    lexicon: Lexicon,
    config: InterleaveConfig,
    path: Path,
) -> dict[str, int]:
    """Shard task: writes the rows of a batch; returns their counts."""
    counts = InterleaveCounts()
    rows = interleave_batch(batch, text_to_codes, lexicon, config)
    artifacts.write_jsonl(path, counts.counting(rows))
    return dataclasses.asdict(counts)


def interleave_batch(
    batch: Sequence[dict[str, Any]],
    text_to_codes: SpansToCodes,
    lexicon: Lexicon,
    config: InterleaveConfig,
) -> list[dict[str, Any]]:
    """Returns the rows of a batch, with "segments" for "text", and "counts" of their words."""
    digests = [document_digest(row, seed=config.seed) for row in batch]
    plans = [plan for some in _chunks(batch, digests) for plan in _plan(*some, lexicon, config)]
    requests = [
        SpanRequest(said, str(row.get("speaker", "")), seed)
        for row, digest, plan in zip(batch, digests, plans, strict=True)
        for seed, said in enumerate(plan.said, int.from_bytes(digest[-4:], "little") >> 1)
    ]
    codes = list(text_to_codes(requests)) if requests else []
    if len(codes) != len(requests):
        raise ValueError(f"text_to_codes gave {len(codes)} answers to {len(requests)} requests")
    answers = iter(codes)
    return [_assemble(row, plan, answers) for row, plan in zip(batch, plans, strict=True)]


def _batches(documents: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    seen: set[str] = set()
    documents = iter(documents)
    while batch := list(itertools.islice(documents, size)):
        for row in batch:
            if not isinstance(row.get("text"), str) or not isinstance(row.get("id"), str):
                raise UserError(
                    f'document {row.get("id")!r}: needs an "id" and a "text", both strings'
                )
            if row["id"] in seen:
                raise UserError(
                    f"document {row['id']!r}: two documents have this id; ids must differ"
                )
            seen.add(row["id"])
        yield batch


def _chunks(
    batch: Sequence[dict[str, Any]], digests: Sequence[bytes]
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yields texts of a batch with their keys, a few at a time, which keeps arrays small."""
    texts: list[str] = []
    length = 0
    for number, row in enumerate(batch, 1):
        texts.append(row["text"])
        length += len(row["text"])
        if length > _CHUNK_CHARACTERS or number == len(batch):
            keys = b"".join(
                digest[: 8 * NUM_KEYS] for digest in digests[number - len(texts) : number]
            )
            yield texts, np.frombuffer(keys, "<u8").astype(np.uint64).reshape(-1, NUM_KEYS)
            texts, length = [], 0


def _plan(
    texts: list[str], keys: np.ndarray, lexicon: Lexicon, config: InterleaveConfig
) -> list[Plan]:
    return choose_spans(
        texts,
        lexicon,
        span_corruption_ratio=config.span_corruption_ratio,
        mean_span_length=config.mean_span_length,
        keys=keys,
    )


def _assemble(row: dict[str, Any], plan: Plan, answers: Iterator[Sequence[int]]) -> dict[str, Any]:
    """Returns a finished row; takes the codes of its spans from `answers`."""
    text = row["text"]
    segments: list[dict[str, Any]] = []
    at = spoken = speech_words = 0
    # `answers` comes last: the others end first, so it stops where the next document begins.
    spans = zip(plan.start, plan.stop, plan.said, plan.num_words, answers, strict=False)
    for start, stop, said, num_words, codes in spans:
        if len(codes):
            if at < start:
                segments.append({"text": text[at:start]})
            segments.append(
                {"codes": list(map(int, codes)), "text": text[start:stop], "said": said}
            )
            at, spoken, speech_words = stop, spoken + 1, speech_words + num_words
    if at < len(text):
        segments.append({"text": text[at:]})
    counts = {
        "words": plan.words,
        "unsayable_words": plan.unsayable_words,
        "speech_words": speech_words,
        "spans": spoken,
        "failed_spans": len(plan.said) - spoken,
    }
    rest = {name: value for name, value in row.items() if name != "text"}
    return rest | {"segments": segments, "counts": counts}
