"""Rows belong to one split each, their identity follows what they hold, and bad ones are named."""

import functools

import pytest

from speechlm_jax import artifacts
from speechlm_jax.data.sources import Rows, code_identity
from speechlm_jax.errors import UserError
from speechlm_jax.vocab import Vocab

VOCAB = Vocab(50, 16, 12.5, "text", "tokenizer-a")
CODES_OF = {"tokenizer": "tokenizer-a", "frame_rate_hz": 12.5, "codebook_size": 16}


def text_rows(*places, **options) -> Rows:
    return Rows(tuple(places), False, {"text": "text"}, **options)


def write_codes(folder, rows, extra=CODES_OF):
    artifacts.write_jsonl(folder / "codes.jsonl", rows)
    artifacts.write_manifest(
        folder, "codes", inputs={}, config={}, files=["codes.jsonl"], extra=extra
    )
    return folder


def test_each_row_is_in_one_split(tmp_path):
    rows = [{"id": f"r{i}", "text": f"text {i}"} for i in range(400)]
    rows[0]["split"], rows[1]["split"], rows[2]["split"] = "validation", "test", "train"
    artifacts.write_jsonl(tmp_path / "a.jsonl", rows)
    source = text_rows(str(tmp_path / "*.jsonl"), validation_ratio=0.2)
    train, held_out = (
        [e["text"] for e in source.examples(source.files(), split)]
        for split in ("train", "validation")
    )
    assert sorted(train + held_out) == sorted(r["text"] for r in rows if r.get("split") != "test")
    assert "text 0" in held_out and "text 2" in train and 50 < len(held_out) < 110


def test_lines_of_a_text_file_are_documents(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo é\n", encoding="utf-8")
    source = text_rows(lambda: tmp_path / "a.txt", validation_ratio=0.0)
    assert [e["text"] for e in source.examples(source.files(), "train")] == ["one", "two é"]


def test_keep_takes_some_rows(tmp_path):
    artifacts.write_jsonl(
        tmp_path / "a.jsonl", [{"id": str(i), "text": "x", "kind": i % 2} for i in range(8)]
    )
    odd = text_rows(tmp_path / "a.jsonl", validation_ratio=0.0, keep=lambda row: row["kind"] == 1)
    assert len(list(odd.examples(odd.files(), "train"))) == 4
    assert odd.identity() != text_rows(tmp_path / "a.jsonl", validation_ratio=0.0).identity()


def test_identity_follows_the_content(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n")
    before = text_rows(path).identity()
    assert text_rows(path).identity() == before
    assert text_rows(path, validation_ratio=0.5).identity() != before
    path.write_text("two\n")
    assert text_rows(path).identity() != before


@pytest.mark.parametrize(
    ("field", "value"),
    [("tokenizer", "tokenizer-b"), ("frame_rate_hz", 25.0), ("codebook_size", 32)],
)
def test_codes_of_another_tokenizer_are_refused(tmp_path, field, value):
    folder = write_codes(tmp_path / "codes", [], CODES_OF | {field: value})
    with pytest.raises(UserError, match=f"{field} .*{value}") as error:
        Rows((folder,), True, {"codes": "codes"}).check(VOCAB)
    assert str(folder) in str(error.value)
    Rows((folder,), True, {"text": "text"}).check(VOCAB)  # what was said does not depend on codes


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "r7", "text": "x"}, "row 'r7' has no field 'codes'"),
        ({"id": "r7", "codes": "1 2"}, "row 'r7' has no list of codes"),
        ({"id": "r7", "codes": [1, 16]}, "row 'r7' has codes outside 0..15"),
        ({"id": "r7", "codes": [-1]}, "row 'r7' has codes outside 0..15"),
        ({"id": "r7", "codes": [[1]]}, "row 'r7' has no list of codes"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    source = Rows((write_codes(tmp_path, [row]),), True, {"codes": "codes"}, validation_ratio=0.0)
    with pytest.raises(UserError, match=message):
        list(source.examples(source.files(), "train", codebook_size=16))


@pytest.mark.parametrize(
    ("segments", "text"),
    [
        (
            [{"text": " A \n"}, {"text": "b, ", "said": "b", "codes": [1]}, {"text": "\t"}],
            " A \nb, \t",
        ),
        ([{"text": "a"}, {"text": "b", "codes": [1]}, {"text": "c"}], "a b c"),
    ],
)
def test_the_text_of_segments_is_the_document(tmp_path, segments, text):
    """As it is written, or of earlier versions with a blank between."""
    artifacts.write_jsonl(tmp_path / "a.jsonl", [{"id": "d", "segments": segments}])
    (example,) = text_rows(tmp_path / "a.jsonl", validation_ratio=0.0).examples(
        [tmp_path / "a.jsonl"], "train"
    )
    assert example == {"text": text}


@pytest.mark.parametrize("segments", ["text", ["text"], [{"txt": "a"}], [{"codes": [99]}]])
def test_bad_segments_are_named(tmp_path, segments):
    artifacts.write_jsonl(tmp_path / "a.jsonl", [{"id": "d3", "segments": segments}])
    source = Rows((tmp_path / "a.jsonl",), False, {"segments": "segments"}, validation_ratio=0.0)
    with pytest.raises(UserError, match="row 'd3' has"):
        list(source.examples(source.files(), "train", codebook_size=16))


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "no list of turns"),
        ([{"role": "bot", "segments": []}], "role is none of system, user, assistant"),
        ([{"role": "user", "segments": [{"text": "a"}]}], "do not end with the assistant's"),
        ([{"role": "assistant", "segments": [{"codes": [99]}]}], "codes outside"),
    ],
)
def test_bad_turns_are_named(tmp_path, turns, message):
    artifacts.write_jsonl(tmp_path / "a.jsonl", [{"id": "d3", "turns": turns}])
    source = Rows((tmp_path / "a.jsonl",), False, {"turns": "turns"}, validation_ratio=0.0)
    with pytest.raises(UserError, match=message):
        list(source.examples(source.files(), "train", codebook_size=16))


def test_missing_or_wrong_places_are_named(tmp_path):
    with pytest.raises(UserError, match="no such text file"):
        text_rows(tmp_path / "*.jsonl").files()
    artifacts.write_manifest(tmp_path, "mel", inputs={}, config={})
    with pytest.raises(UserError, match="holds mel"):
        Rows((tmp_path,), True, {"codes": "codes"}).files()
    (tmp_path / "latin.txt").write_bytes("café\n".encode("latin-1"))
    source = text_rows(tmp_path / "latin.txt")
    with pytest.raises(UserError, match="latin.txt: is not UTF-8"):
        list(source.examples(source.files(), "train"))


def test_code_identity_sees_code_and_plain_values():
    def make(number):
        return lambda row: row["n"] == number

    assert code_identity(make(1)) == code_identity(make(1)) != code_identity(make(2))
    assert code_identity(functools.partial(make, 1)) != code_identity(functools.partial(make, 2))
    assert code_identity(make(object())) == code_identity(make(object()))
