"""Rows belong to one split each, their identity follows what they hold, and bad ones are named."""

import dataclasses
import gzip
import json

import pytest

from speechlm_jax import artifacts
from speechlm_jax.data.sources import Rows
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


def lines_of(*places) -> list[str]:
    source = text_rows(*places, validation_ratio=0.0)
    return [e["text"] for e in source.examples(source.files(), "train")]


def test_a_file_that_is_there_is_taken_by_its_name_and_marks_match_others(tmp_path):
    for name in (
        "part[1].txt",
        "part1.txt",
        "a*b.txt",
        "aXb.txt",
        "deep/down/c.txt",
        "deep/.d.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{name}\n")
    assert lines_of(tmp_path / "part[1].txt") == ["part[1].txt"]
    assert lines_of(tmp_path / "a*b.txt") == ["a*b.txt"]
    (tmp_path / "part[1].txt").unlink()
    assert lines_of(tmp_path / "part[1].txt") == ["part1.txt"]
    assert lines_of(str(tmp_path / "*[Xb].txt")) == ["a*b.txt", "aXb.txt"]
    for mark in ("**/*.txt", "**"):  # hidden files are not matched
        assert set(lines_of(tmp_path / "deep" / mark)) == {"deep/down/c.txt"}


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("folder", r"folder: is a folder; name its files, e.g. .*folder/\*.txt"),
        ("fold*", r"fold\*: no such text file, only folders"),
        ("none.txt", "none.txt: no such text file"),
        ("none*.txt", r"none\*.txt: no such text file"),
        ("none[1].txt", r"none\[1\].txt: no such text file"),
        ("gone.txt", "gone.txt: no such text file"),  # a link to nothing
    ],
)
def test_a_place_without_files_gets_the_right_word(tmp_path, place, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=message):
        text_rows(tmp_path / place).files()


@pytest.mark.parametrize("name", ["a.txt", "A.TXT", "a.md", "noending", "a.txt.gz", "a.jsonl",
                                  "a.JSONL", "a.jsonl.gz"])  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_text_is_read_plain_or_compressed_with_or_without_a_mark(tmp_path, name, encoding):
    said = ["one", "  two é\t", "\u2028three"]
    rows = said if "jsonl" not in name.lower() else [json.dumps({"text": text}) for text in said]
    data = "\r\n".join([*rows, "", " "]).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data, mtime=0) if name.endswith("gz") else data)
    assert lines_of(tmp_path / name) == said


def test_marks_are_dropped_where_files_were_put_together_or_rows_hold_them(tmp_path):
    mark = "\ufeff".encode()
    (tmp_path / "a.txt").write_bytes(mark + b"one\n" + mark + b"two\n")
    artifacts.write_jsonl(tmp_path / "a.jsonl", [{"text": "\ufeffthree"}])
    assert lines_of(tmp_path / "a.txt", tmp_path / "a.jsonl") == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        *((f"a.{kind}", "one\ntwo".encode(encoding), f"a.{kind}: is UTF-16 or UTF-32; `iconv")
          for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32")
          for kind in ("txt", "jsonl")),
        ("a.txt.gz", b"plain", "a.txt.gz: is not a whole gzip file"),
        (
            "a.txt.gz",
            gzip.compress(b"a line\n" * 999, mtime=0)[:-9],
            "a.txt.gz: is not a whole gzip file",
        ),
        ("a.txt.gz", b"", ""),
        ("a.txt.gz", gzip.compress("café".encode("latin-1"), mtime=0), "a.txt.gz: is not UTF-8"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n{', mtime=0), "a.jsonl.gz:2: is not JSON"),
        *((f"a.{kind}", b"x", f"a.{kind}: is not read; give .txt or .jsonl")
          for kind in ("json", "csv", "parquet.gz", "zip", "jsonl.zst", "json.gz", "xz")),
        ("a.jsonl", b'{"id": 7, "text": "a \\ud800"}', "row 7 has no text in 'text'"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "a.jsonl:1: "),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "a.jsonl:1: cannot be read"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_what_it_says_is_one_line(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    if not message:
        assert lines_of(tmp_path / name) == []
        return
    with pytest.raises(UserError, match=message) as error:
        lines_of(tmp_path / name)
    assert "\n" not in str(error.value)


def test_rows_go_by_what_they_say_or_by_their_id(tmp_path):
    rows = text_rows(tmp_path / "a.txt", validation_ratio=0.5)
    said = [{"id": str(i), "text": f"Row {i}."} for i in range(50)]
    for row in said:
        versions = [{"id": "x", "text": "\t" + row["text"].upper()},
                    {"id": "y", "segments": [{"codes": [1], "text": "row"},
                                             {"text": row["text"][3:]}]}]  # fmt: skip
        assert {rows.split_of(version) for version in versions} == {rows.split_of(row)}
        story = dataclasses.replace(rows, fields={"text": "story"})
        assert story.split_of({"id": "z", "story": row["text"], "text": "other"}) == (
            rows.split_of(row)
        )
    silent = [{"id": str(i), "codes": [1]} for i in range(50)]
    assert {rows.split_of(row) for row in silent} == {"train", "validation"}
    assert rows.split_of({"id": "x", "text": "Row 1.", "split": "mine"}) == "mine"
    same = [{"id": str(i), "text": "same"} for i in range(50)]
    assert len({rows.split_of(row) for row in same}) == 1
    by_id = dataclasses.replace(rows, by_id=True)
    assert len({by_id.split_of(row) for row in same}) == 2
    held = dataclasses.replace(rows, validation_ratio=0.0, held_out=frozenset({rows.key(same[0])}))
    assert held.split_of(same[0]) == "validation" and held.split_of(said[0]) == "train"
