"""Interleaving keeps every character, resumes, and does not depend on batches."""

import time

import numpy as np
import pytest

from speechlm_jax import artifacts
from speechlm_jax.codes import CodesIdentity
from speechlm_jax.errors import UserError
from speechlm_jax.interleave import build as rules
from speechlm_jax.interleave.build import (
    InterleaveConfig,
    SpanRequest,
    document_to_interleaved,
    interleave_batch,
)
from speechlm_jax.interleave.words import Lexicon
from speechlm_jax.jobs.commit import SHARDS

CODES_OF = CodesIdentity("t", 12.5, 512)


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


def say(word: str) -> str | None:
    return None if "$" in word else word.strip(".,!?").lower()


def speak(requests: list[SpanRequest]) -> list[list[int]]:
    return [[len(word) for word in request.text.split()] for request in requests]


def build(
    out, documents, text_to_codes=speak, inputs=None, bad=(), progress=lambda count: None, **config
):
    return document_to_interleaved(
        documents, text_to_codes, say=say, out=out, config=InterleaveConfig(**config),
        inputs=inputs or {"documents": "x"}, codes=CODES_OF, bad=bad, progress=progress,
    )  # fmt: skip


def read(out):
    return list(artifacts.read_jsonl(out / "documents.jsonl"))


def files(out):
    return {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def interleave(texts, text_to_codes=speak, **config):
    rows = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
    return interleave_batch(rows, text_to_codes, Lexicon(say), InterleaveConfig(**config))


# Those at which texts are split, or might be.
AWKWARD = (
    " \n\r\t\x0b\x0c\x1c\x85\xa0\u1680\u2028\u2029\u3000\u200b\u200d\ufeff\u0301\u0903\0$.,-'a1"
)
CHARACTERS = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]


def draw_texts(count, seed):
    """Texts of up to 80 characters: any of Unicode, and half of them awkward ones."""
    rng = np.random.default_rng(seed)
    for length in rng.integers(1, 80, count):
        any_ = rng.integers(len(CHARACTERS), size=length)
        awkward = rng.integers(2 * len(AWKWARD), size=length)
        yield "".join(
            AWKWARD[k] if k < len(AWKWARD) else CHARACTERS[n]
            for n, k in zip(any_, awkward, strict=True)
        )


@pytest.mark.parametrize(("ratio", "mean"), [(0.0, 3.0), (0.3, 1.0), (0.3, 10.0), (1.0, 3.0)])
@pytest.mark.parametrize("failing", [0, 2])
def test_joined_segments_are_the_document_whatever_it_holds(ratio, mean, failing):
    def some_fail(requests):
        return [[1] if number % 3 >= failing else [] for number in range(len(requests))]

    everything = "".join(CHARACTERS)
    texts = ["\r\n", everything, " ".join(CHARACTERS[:3000]), *draw_texts(400, failing)]
    options = {"span_corruption_ratio": ratio, "mean_span_length": mean}
    for text, row in zip(texts, interleave(texts, some_fail, **options), strict=True):
        assert "".join(segment["text"] for segment in row["segments"]) == text
        for segment in row["segments"]:
            assert segment["text"]
            if "codes" in segment:
                words = segment["text"].split()
                assert segment["text"] == segment["text"].strip(), "white space stays text"
                assert segment["said"] == " ".join(filter(None, map(say, words)))


def test_text_stays_as_it_is_and_what_is_said_is_normalised():
    text = '  It costs $5.50,\r\n\r\n"OK!" \u2014 she\xa0said... YES \n'
    (row,) = interleave([text], span_corruption_ratio=1.0)
    spoken = [(s["text"], s["said"]) for s in row["segments"] if "codes" in s]
    assert "".join(segment["text"] for segment in row["segments"]) == text
    assert " ".join(said for _, said in spoken) == 'it costs "ok!" \u2014 she said yes'
    assert row["counts"] == {
        "words": 8, "unsayable_words": 1, "speech_words": 7, "spans": len(spoken),
        "failed_spans": 0,
    }  # fmt: skip
    assert all("$" not in words for words, _ in spoken)


def test_words_that_cannot_be_said_stay_text_and_are_counted(tmp_path):
    documents = make_documents(count=40)
    for row in documents:
        row["text"] = " ".join(
            f"${word}" if number % 5 == 0 else word
            for number, word in enumerate(row["text"].split())
        )
    asked: list[SpanRequest] = []

    def note(requests):
        asked.extend(requests)
        return speak(requests)

    counts = build(tmp_path, documents, note).counts
    assert asked and not any("$" in request.text for request in asked)
    assert (counts["words"], counts["unsayable_words"]) == (2400, 480)
    assert counts["ratio"] == counts["speech_words"] / 2400
    assert counts["sayable_ratio"] == counts["speech_words"] / 1920
    assert abs(counts["sayable_ratio"] - 0.3) < 0.05


def test_words_keep_their_order_and_counts_are_right(tmp_path):
    documents = make_documents()
    manifest = build(tmp_path, documents, bad=[{"place": "f:1", "reason": "f:1: is blank"}])
    spoken = total = 0
    for row, made in zip(documents, read(tmp_path), strict=True):
        assert "".join(s["text"] for s in made["segments"]) == row["text"]
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
                assert segment["codes"] == [len(word) for word in segment["said"].split()]
    assert manifest.counts["ratio"] == manifest.counts["sayable_ratio"] == spoken / total
    assert manifest.counts["bad"] == 1
    assert list(artifacts.read_jsonl(tmp_path / "bad.jsonl"))[0]["place"] == "f:1"
    assert manifest.extra == CODES_OF.to_json() and manifest.kind == "interleaved"
    assert artifacts.verify(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {
        "documents.jsonl", "bad.jsonl", artifacts.MANIFEST
    }  # fmt: skip


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


@pytest.mark.parametrize("stop", range(4))
def test_an_interrupted_build_goes_on_where_it_stopped(tmp_path, stop):
    documents, a = make_documents(), tmp_path / "a"
    calls: list[int] = []
    done: list[int] = []

    def stops_once(requests):
        calls.append(len(requests))
        if len(calls) == stop + 1:
            raise KeyboardInterrupt
        return speak(requests)

    def build_a(**given):
        return build(a, iter(documents), stops_once, batch_documents=3, **given)

    with pytest.raises(KeyboardInterrupt):
        build_a()
    assert not (a / artifacts.MANIFEST).exists()
    build_a(progress=done.append)
    assert len(calls) == 4 + 1, "finished batches are not spoken again"
    assert done == [3, 3, 3, 3], "and count as progress"
    build(tmp_path / "b", documents, batch_documents=3)
    assert files(a) == files(tmp_path / "b")
    (a / SHARDS).mkdir()  # killed before it was removed
    (a / ".documents.jsonl.1.tmp").touch()
    build_a()
    assert len(calls) == 5, "a finished folder is kept"
    assert files(a) == files(tmp_path / "b") and not (a / SHARDS).exists()
    build_a(inputs={"documents": "y"})
    assert len(calls) == 9, "another input is built anew"


def test_what_an_earlier_version_left_unfinished_is_removed_and_told(tmp_path, caplog):
    caplog.set_level("INFO")
    old, other = tmp_path / f"parts-{'0f' * 8}", tmp_path / "parts-of-mine"
    for folder in (old, other):
        artifacts.write_jsonl(folder / "000000.jsonl", [])
    build(tmp_path, make_documents())
    assert not old.exists() and other.exists()
    assert [old.name in line and "anew" in line for line in caplog.messages] == [True]


def test_what_another_version_has_made_is_not_kept_or_mixed_in(tmp_path, monkeypatch):
    spoken: list[SpanRequest] = []

    def stops_soon(requests):
        spoken.extend(requests)
        if len(spoken) > 12:
            raise KeyboardInterrupt
        return [[7]] * len(requests)

    documents = make_documents()
    monkeypatch.setattr(rules, "VERSION", "1")
    build(tmp_path / "whole", documents, lambda requests: [[7]] * len(requests))
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "half", documents, stops_soon, batch_documents=3)
    assert list((tmp_path / "half" / SHARDS).glob("*.json"))
    monkeypatch.undo()
    for name, batch_documents in (("whole", 256), ("half", 3)):
        build(tmp_path / name, documents, batch_documents=batch_documents)
        segments = [segment for row in read(tmp_path / name) for segment in row["segments"]]
        assert not any(7 in segment.get("codes", ()) for segment in segments)
        assert not (tmp_path / name / SHARDS).exists()


def test_a_request_says_who_speaks_and_has_a_seed_of_its_own(tmp_path):
    seen: dict[int, list[SpanRequest]] = {0: [], 1: []}

    def note(seed):
        return lambda requests: seen[seed].extend(requests) or speak(requests)

    for seed in seen:
        build(tmp_path / str(seed), make_documents(), note(seed), seed=seed)
    seeds = {request.seed for requests in seen.values() for request in requests}
    assert len(seeds) == len(seen[0]) + len(seen[1]), "and the config's seed changes them all"
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert {r.speaker for r in seen[0]} == {"s0", "s1", "s2"}


def test_time_is_linear_in_the_words_of_one_document():
    """Four times as long takes four times as long, not sixteen: the best of several."""

    def seconds(words):
        documents = make_documents(1, words)
        best = []
        for _ in range(5):
            start = time.process_time()
            interleave_batch(documents, speak, Lexicon(say), InterleaveConfig())
            best.append(time.process_time() - start)
        return min(best)

    assert seconds(40_000) < 10 * seconds(10_000)


def test_bad_documents_are_named(tmp_path):
    for documents, message in (
        ([{"id": "a"}], "document 'a': needs"),
        ([{"id": "a", "text": "x"}] * 2, "document 'a': two documents"),
    ):
        with pytest.raises(UserError, match=message):
            build(tmp_path, documents)
    with pytest.raises(ValueError, match="answers"):
        build(tmp_path, make_documents(), lambda requests: [])
