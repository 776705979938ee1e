"""Plain text -> interleaved speech-text documents, without a word being spoken aloud."""

import dataclasses
import hashlib
import itertools
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.errors import UserError
from speechlm_jax.interleave.spans import Span, sample_spans

KIND = "interleaved"
DOCUMENTS = "documents.jsonl"


@dataclasses.dataclass(frozen=True)
class InterleaveConfig:
    """How documents are interleaved (Zeng et al., section 2.2).

    Attributes:
      span_corruption_ratio: fraction of the words that become speech.
      mean_span_length: Poisson mean in words.
      seed: with a document's id, it decides the document's spans.
      batch_documents: documents whose spans are turned into codes by one call; each batch is
        kept on disk when done, so that an interrupted build goes on there.
    """

    span_corruption_ratio: float = 0.3
    mean_span_length: float = 10.0
    seed: int = 0
    batch_documents: int = 256

    def __post_init__(self) -> None:
        configs.at_least(self, 0, "span_corruption_ratio", most=1)
        configs.above_0(self, "mean_span_length")
        configs.at_least(self, 0, "seed", most=2**63 - 1)
        configs.at_least(self, 1, "batch_documents")


@dataclasses.dataclass(frozen=True)
class SpanRequest:
    """A span to be turned into codes.

    Attributes:
      text: its words.
      document: id of the document; with `number` it names the span, e.g. as a sampling key.
      number: of the span in the document.
      speaker: the document's "speaker", so that one voice speaks a document; "" if it has none.
    """

    text: str
    document: str
    number: int
    speaker: str


SpansToCodes = Callable[[list[SpanRequest]], Sequence[Sequence[int]]]


def document_to_interleaved(
    documents: Iterable[dict[str, Any]],
    text_to_codes: SpansToCodes,
    *,
    out: str | Path,
    config: InterleaveConfig,
    inputs: dict[str, str],
    tokenizer: dict[str, Any],
    progress: Callable[[int], object] = lambda documents: None,
) -> artifacts.Manifest:
    """Writes the interleaved folder of some documents; a finished one of the same inputs is kept.

    A span for which `text_to_codes` gives no codes stays text. Words keep their order: what a
    document says, read across text and speech, is unchanged.

    Args:
      documents: rows {"id", "text", ...}; all other fields are carried over.
      text_to_codes: requests -> codes of each, in order. What it gives for a request should
        depend on that request alone, or a restart changes the result.
      out: the folder: `documents.jsonl`, `stage.json`.
      config: ratio, span lengths, seed.
      inputs: fingerprints of the documents and of the text-to-token model.
      tokenizer: {"tokenizer", "frame_rate_hz", "codebook_size"}: what the codes are.
      progress: called with the number of documents of each finished batch.

    Returns:
      The manifest; `counts["ratio"]` is the fraction of words that became speech.

    Raises:
      UserError: a document without id or text, or two of the same id.
    """
    out = Path(out)
    if artifacts.is_current(out, KIND, inputs=inputs, config=config, seed=config.seed):
        return artifacts.read_manifest(out)
    identity = configs.fingerprint({"inputs": inputs, "config": config})
    parts, counts = [], InterleaveCounts()
    for number, batch in enumerate(_batches(documents, config.batch_documents)):
        part = out / f"parts-{identity}" / f"{number:06d}.jsonl"
        if not part.is_file():
            artifacts.write_jsonl(part, _interleave_batch(batch, text_to_codes, config))
        parts.append(part)
        progress(len(batch))
    rows = (row for part in parts for row in artifacts.read_jsonl(part))
    artifacts.write_jsonl(out / DOCUMENTS, counts.counting(rows))
    manifest = artifacts.write_manifest(
        out, KIND, inputs=inputs, config=config, seed=config.seed,
        counts=counts.to_json(), files=[DOCUMENTS], extra=tokenizer,
    )  # fmt: skip
    for folder in out.glob("parts-*"):
        shutil.rmtree(folder)
    return manifest


@dataclasses.dataclass
class InterleaveCounts:
    """What became of the words."""

    documents: int = 0
    words: int = 0
    speech_words: int = 0
    spans: int = 0
    failed_spans: int = 0
    codes: int = 0

    def counting(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Passes finished documents on and counts them."""
        for row in rows:
            self.documents += 1
            self.failed_spans += row["failed_spans"]
            for segment in row["segments"]:
                words = len(segment["text"].split())
                self.words += words
                if "codes" in segment:
                    self.spans += 1
                    self.speech_words += words
                    self.codes += len(segment["codes"])
            yield row

    def to_json(self) -> dict[str, Any]:
        """The counts with the ratio that came out."""
        return dataclasses.asdict(self) | {"ratio": self.speech_words / max(self.words, 1)}


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


def _interleave_batch(
    batch: list[dict[str, Any]], text_to_codes: SpansToCodes, config: InterleaveConfig
) -> list[dict[str, Any]]:
    spans = [_document_spans(row, config) for row in batch]
    requests = [
        SpanRequest(_words_of(row["text"], span), row["id"], number, str(row.get("speaker", "")))
        for row, its in zip(batch, spans, strict=True)
        for number, span in enumerate(its)
    ]
    codes = list(text_to_codes(requests)) if requests else []
    if len(codes) != len(requests):
        raise ValueError(f"text_to_codes gave {len(codes)} answers to {len(requests)} requests")
    answers = iter(codes)
    return [
        _assemble(row, its, [next(answers) for _ in its])
        for row, its in zip(batch, spans, strict=True)
    ]


def _document_spans(row: dict[str, Any], config: InterleaveConfig) -> list[Span]:
    # Seeded by the document's id: neither order nor batches change a document.
    key = int.from_bytes(hashlib.sha256(row["id"].encode()).digest()[:8], "little")
    return sample_spans(
        len(row["text"].split()),
        span_corruption_ratio=config.span_corruption_ratio,
        mean_span_length=config.mean_span_length,
        rng=np.random.default_rng([config.seed, key]),
    )


def _words_of(text: str, span: Span) -> str:
    """The words of a span as they stand in the text, spaces between them included."""
    words = list(re.finditer(r"\S+", text))[span.start : span.stop]
    return text[words[0].start() : words[-1].end()]


def _assemble(row: dict[str, Any], spans: list[Span], codes: list[Sequence[int]]) -> dict[str, Any]:
    """The row with "segments" in place of "text"; neighbouring text becomes one segment."""
    spoken = [(s, [int(code) for code in c]) for s, c in zip(spans, codes, strict=True) if len(c)]
    num_words = len(row["text"].split())
    segments, at = [], 0
    for span, its_codes in spoken:
        if span.start > at:
            segments.append({"text": _words_of(row["text"], Span(at, span.start))})
        segments.append({"codes": its_codes, "text": _words_of(row["text"], span)})
        at = span.stop
    if at < num_words:
        segments.append({"text": _words_of(row["text"], Span(at, num_words))})
    rest = {key: value for key, value in row.items() if key != "text"}
    return rest | {"segments": segments, "failed_spans": len(spans) - len(spoken)}
