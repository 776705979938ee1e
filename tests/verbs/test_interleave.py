"""`speechlm interleave` on a tiny run: text as it is written, all from document and seed."""

import datetime
import decimal
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from speechlm_jax import artifacts
from speechlm_jax.bundle.models import Bundle
from speechlm_jax.bundle.open import open_bundle
from speechlm_jax.text_to_token.synthesize import TextToToken
from speechlm_jax.verbs.interleave import interleave

pytestmark = pytest.mark.filterwarnings("ignore")

TEXTS = [
    f'The city of {name} is London:\t"it is the cat of BEN!" \u2014 it costs $5.50,\r\n\r\n'
    f"says the zebra of https://a.org/{number}. What is it, the cat of {name}?  "
    for number in range(6)
    for name in ("Anna", "Ben")
]


def interleaved(folder):
    rows = list(artifacts.read_jsonl(folder / "documents.jsonl"))
    return {row["id"]: (row["speaker"], row["segments"]) for row in rows}


def write_rows(path, rows):
    artifacts.write_jsonl(path, rows)
    return path


class Speaker(TextToToken):
    """Stands in for the model: its codes follow from all that a request says."""

    def __init__(self):
        pass

    def text_to_codes(self, requests):
        return [np.array([len(r.text) % 16, ord(r.voice[0]) % 16, r.seed % 16]) for r in requests]


@pytest.fixture
def speaker(monkeypatch):
    monkeypatch.setattr(Bundle, "make_text_to_token", lambda *_: Speaker())


def test_every_character_is_kept_and_the_ratio_told(run, tmp_path):
    rows = [{"text": text, "title": f"T{i}", "id": i} for i, text in enumerate(TEXTS)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    said = interleave(file, run=run, out=tmp_path / "out", mean_span_length=4.0)
    made = list(artifacts.read_jsonl(tmp_path / "out/documents.jsonl"))
    assert said["interleaved"] == str(tmp_path / "out/documents.jsonl") and said["bad"] == 0
    assert said["spans"] > 0 and 0 < said["ratio"] < said["sayable_ratio"] < 0.6
    assert (said["documents"], said["words"], said["unsayable_words"]) == (12, 27 * 12, 5 * 12)
    known = {*"anna ben city cat has is it lives london of the what".split()}
    for row, given in zip(made, rows, strict=True):
        assert "".join(segment["text"] for segment in row["segments"]) == given["text"]
        assert (row["id"], row["title"]) == (str(given["id"]), given["title"])
        spoken = [segment for segment in row["segments"] if "codes" in segment]
        assert {word for segment in spoken for word in segment["said"].split()} <= known
    assert artifacts.read_manifest(tmp_path / "out").extra == open_bundle(run).codes.to_json()


def test_a_document_is_interleaved_alike_in_every_file_and_the_seed_changes_it(
    run, tmp_path, speaker
):
    many = [{"text": text} for text in TEXTS]
    few = [{"text": TEXTS[n], "speaker": None} for n in (7, 3)]
    out = {}
    for name, rows, seed in (
        ("a", many, 0), ("b", [*many[5:], *many[:5]], 0), ("few", few, 0), ("seed", many, 1),
    ):  # fmt: skip
        file = write_rows(tmp_path / f"{name}.jsonl", rows)
        interleave(file, run=run, out=tmp_path / name, mean_span_length=4.0, seed=seed)
        out[name] = interleaved(tmp_path / name)
    assert len(out["a"]) == len(TEXTS) and out["a"] == out["b"]
    assert out["few"] == {id_: out["a"][id_] for id_ in out["few"]} and len(out["few"]) == 2
    assert {voice for voice, _ in out["a"].values()} == {"Ann", "Ben"}
    assert out["seed"].keys() == out["a"].keys()
    assert sum(out["seed"][id_] == made for id_, made in out["a"].items()) < 3


def test_the_seed_reaches_the_sampling_of_codes(run, tmp_path, speaker):
    """Of a word that is always spoken, in one voice, the codes differ from seed to seed."""
    file = write_rows(tmp_path / "rows.jsonl", [{"text": "London", "speaker": "Ann"}])
    codes = set()
    for seed in (0, 1, 2, 3, 2**63 - 1):
        interleave(file, run=run, out=tmp_path / "out", span_corruption_ratio=1.0, seed=seed)
        ((_, segments),) = interleaved(tmp_path / "out").values()
        codes.add(tuple(segments[0]["codes"]))
    assert len(codes) > 2


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.gz"])
def test_text_is_read_plain_or_gzipped(run, tmp_path, speaker, name):
    """A document a line, its blanks with it, without the mark of a byte order or the line's end."""
    texts = ["  It is the cat of Anna, \u2028and it lives in London. ", "What is it?"]
    lines = [json.dumps({"text": text}) if ".jsonl" in name else text for text in texts]
    opened = gzip.open if name.endswith(".gz") else open
    with opened(tmp_path / name, "wt", encoding="utf-8-sig", newline="") as file:
        file.write("\r\n".join(lines) + "\r\n")
    said = interleave(tmp_path / name, run=run, out=tmp_path / "out", span_corruption_ratio=1.0)
    made = [segments for _, segments in interleaved(tmp_path / "out").values()]
    assert ["".join(s["text"] for s in segments) for segments in made] == texts
    assert said["bad"] == 0 and said["speech_words"] == 12


def test_what_cannot_be_interleaved_is_set_aside_listed_and_counted(run, tmp_path, caplog, speaker):
    lines = [
        '{"text": "it is the cat"}', '{"text": "it is', "[1]", '{"text": 7}', '{"txt": "it"}', "",
        '{"text": " "}', '{"text": "it \\ud800"}', '{"text": "it is the cat"}',
        '{"text": "the city", "id": 1}', '{"text": "what is it", "id": "1"}', '{"text": "ben"}',
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    said = interleave(tmp_path / "rows.jsonl", run=run, out=tmp_path / "out")
    assert said["bad"] == 8 and Path(said["set_aside"]).name == "bad.jsonl"
    bad = list(artifacts.read_jsonl(tmp_path / "out/bad.jsonl"))
    assert [row["place"] for row in bad] == [f"rows.jsonl:{n}" for n in (2, 3, 4, 5, 7, 8, 9, 11)]
    assert all(f"rows.jsonl:{row['place'].split(':')[1]}: " in row["reason"] for row in bad)
    assert caplog.text.count("set aside: ") == 8
    assert len(interleaved(tmp_path / "out")) == 3 and not artifacts.verify(tmp_path / "out")


def test_dates_and_decimals_of_parquet_set_nothing_aside(run, tmp_path, speaker):
    columns = {
        "text": TEXTS[:3],
        "when": [datetime.datetime(2026, 1, day) for day in (1, 2, 3)],
        "price": [decimal.Decimal("1.50")] * 3,
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    said = interleave(tmp_path / "rows.parquet", run=run, out=tmp_path / "out")
    made = list(artifacts.read_jsonl(tmp_path / "out/documents.jsonl"))
    assert (said["documents"], said["bad"]) == (3, 0)
    assert [row["when"][:10] for row in made] == ["2026-01-01", "2026-01-02", "2026-01-03"]
    assert {row["price"] for row in made} == {"1.50"}
