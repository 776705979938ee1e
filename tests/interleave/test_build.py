"""Interleaving keeps every word in order, resumes, and does not depend on batches."""

import numpy as np
import pytest

from speechlm_jax import artifacts
from speechlm_jax.errors import UserError
from speechlm_jax.interleave.build import InterleaveConfig, SpanRequest, document_to_interleaved

CODES_OF = {"tokenizer": "t", "frame_rate_hz": 12.5, "codebook_size": 512}


def make_documents(count=12, words=60):
    rng = np.random.default_rng(0)
    return [
        {
            "id": f"d{i}",
            "speaker": f"s{i % 3}",
            "text": " ".join(f"w{n}," for n in rng.integers(0, 99, words)),
        }
        for i in range(count)
    ]


def speak(requests: list[SpanRequest]) -> list[list[int]]:
    return [[len(word) for word in request.text.split()] for request in requests]


def build(out, documents, text_to_codes=speak, inputs=None, **config):
    return document_to_interleaved(
        documents, text_to_codes, out=out, config=InterleaveConfig(**config),
        inputs=inputs or {"documents": "x"}, tokenizer=CODES_OF,
    )  # fmt: skip


def read(out):
    return list(artifacts.read_jsonl(out / "documents.jsonl"))


def test_words_keep_their_order_and_counts_are_right(tmp_path):
    documents = make_documents()
    manifest = build(tmp_path, documents)
    spoken = total = 0
    for row, made in zip(documents, read(tmp_path), strict=True):
        assert " ".join(s["text"] for s in made["segments"]) == row["text"]
        assert made["speaker"] == row["speaker"] and "text" not in made
        kinds = ["codes" in segment for segment in made["segments"]]
        assert all(a != b for a, b in zip(kinds, kinds[1:], strict=False)), (
            "the modalities take turns"
        )
        for segment in made["segments"]:
            words = segment["text"].split()
            total += len(words)
            if "codes" in segment:
                spoken += len(words)
                assert segment["codes"] == [len(word) for word in words]
    assert manifest.counts["ratio"] == spoken / total
    assert manifest.extra == CODES_OF and manifest.kind == "interleaved"
    assert artifacts.verify(tmp_path) == [] and not list(tmp_path.glob("parts-*"))


def test_batches_and_order_do_not_change_a_document(tmp_path):
    documents = make_documents()
    build(tmp_path / "a", documents)
    build(tmp_path / "b", documents[::-1], batch_documents=5)
    assert read(tmp_path / "a") == read(tmp_path / "b")[::-1]
    build(tmp_path / "c", documents, seed=1)
    assert read(tmp_path / "c") != read(tmp_path / "a")


def test_a_span_without_codes_stays_text(tmp_path):
    documents = make_documents()
    manifest = build(tmp_path, documents, lambda requests: [[] for _ in requests])
    assert [r["segments"] for r in read(tmp_path)] == [[{"text": d["text"]}] for d in documents]
    assert manifest.counts["failed_spans"] > 0 and manifest.counts["ratio"] == 0


def test_an_interrupted_build_goes_on_where_it_stopped(tmp_path):
    calls = []

    def stops_once(requests):
        calls.append(len(requests))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return speak(requests)

    documents = make_documents()
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "a", documents, stops_once, batch_documents=3)
    assert not (tmp_path / "a" / artifacts.MANIFEST).exists()
    build(tmp_path / "a", documents, stops_once, batch_documents=3)
    assert len(calls) == 3 + 2, "the two finished batches are not spoken again"
    build(tmp_path / "b", documents, batch_documents=3)
    assert read(tmp_path / "a") == read(tmp_path / "b")
    build(tmp_path / "a", documents, stops_once, batch_documents=3)
    assert len(calls) == 5, "a finished folder is kept"
    build(tmp_path / "a", documents, stops_once, inputs={"documents": "y"}, batch_documents=3)
    assert len(calls) == 9, "another input is built anew"


def test_a_request_says_who_speaks_and_names_its_span(tmp_path):
    seen: list[SpanRequest] = []

    def note(requests):
        seen.extend(requests)
        return speak(requests)

    build(tmp_path, make_documents(), note)
    assert len({(r.document, r.number) for r in seen}) == len(seen)
    assert {r.speaker for r in seen} == {"s0", "s1", "s2"}


def test_bad_documents_are_named(tmp_path):
    for documents, message in (
        ([{"id": "a"}], "document 'a': needs"),
        ([{"id": "a", "text": "x"}] * 2, "document 'a': two documents"),
    ):
        with pytest.raises(UserError, match=message):
            build(tmp_path, documents)
    with pytest.raises(ValueError, match="answers"):
        build(tmp_path, make_documents(), lambda requests: [])
