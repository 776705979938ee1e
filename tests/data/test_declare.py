"""Codes made elsewhere: what is declared is checked, and a change since is noticed."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from speechlm_jax import artifacts
from speechlm_jax.data.declare import declare_codes
from speechlm_jax.data.sources import Rows
from speechlm_jax.errors import UserError
from speechlm_jax.vocab import Vocab

VOCAB = Vocab(50, 16, 12.5, "text", "tokenizer-a")
GOOD = [{"id": f"r{i}", "codes": [i % 16, 3], "text": f"text {i}"} for i in range(30)]
CODES = {"codes": "codes"}


def write(folder, rows, format="parquet", parts=1):
    folder.mkdir(exist_ok=True)
    if format == "jsonl":
        artifacts.write_jsonl(folder / "codes.jsonl", rows)
    for part in range(parts if format == "parquet" else 0):
        size = -(-len(rows) // parts)
        table = pyarrow.Table.from_pylist(rows[part * size : (part + 1) * size])
        pyarrow.parquet.write_table(table, folder / f"part-{part}.parquet")
    return folder


def declare(folder, **options):
    values = {"tokenizer": "tokenizer-a", "frame_rate_hz": 12.5, "codebook_size": 16}
    return declare_codes(folder, **(values | options))


def examples(folder, fields, split="train"):
    rows = Rows((folder,), True, fields, validation_ratio=0.3)
    rows.check(VOCAB)
    return list(rows.examples(rows.files(), split, codebook_size=16))


def as_lists(found):
    return [{k: v if isinstance(v, str) else v.tolist() for k, v in e.items()} for e in found]


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("parts", [1, 4])
def test_both_formats_give_the_same_examples(tmp_path, split, parts):
    fields = CODES | {"text": "text"}
    lines = write(tmp_path / "a", GOOD, "jsonl")
    parquet = write(tmp_path / "b", GOOD, parts=parts)
    assert declare(lines).counts == declare(parquet).counts == {"rows": 30}
    expected = as_lists(examples(lines, fields, split))
    assert as_lists(examples(parquet, fields, split)) == expected and 3 < len(expected) < 27


@pytest.mark.parametrize(
    ("kind", "file", "row"),
    [
        ("interleaved", "documents.jsonl", [{"text": "it"}, {"text": "is", "codes": [1]}]),
        (
            "dialogues",
            "dialogues.jsonl",
            [{"role": "assistant", "segments": [{"text": "it"}, {"codes": [1]}]}],
        ),
    ],
)
def test_documents_and_dialogues_come_in_both_formats_too(tmp_path, kind, file, row):
    name = "segments" if kind == "interleaved" else "turns"
    rows = [{"id": "a", name: row, "split": "train"}]
    artifacts.write_jsonl(tmp_path / "lines" / file, rows)
    parquet = write(tmp_path / "parquet", rows)
    for folder in (tmp_path / "lines", parquet):
        declare(folder, kind=kind)
        ((found,),) = (example.values() for example in examples(folder, {name: name}))
        assert json.loads(found) == row
        with pytest.raises(UserError, match="row 'a' has codes outside 0..0"):
            declare(folder, kind=kind, codebook_size=1)


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": None}, "row 'r7' has no field 'codes'"),
        ({"codes": [1, None]}, "row 'r7' has no list of codes in 'codes'"),
        ({"codes": [1, 16]}, "row 'r7' has codes outside 0..15 in 'codes'"),
        ({"codes": [-1]}, "row 'r7' has codes outside 0..15 in 'codes'"),
        ({"id": "r3"}, "row 'r3' has the id of an earlier row"),
    ],
)
def test_a_bad_row_is_named_with_its_file(tmp_path, format, change, message):
    bad = [row | change if row["id"] == "r7" else row for row in GOOD]
    write(tmp_path, bad, format)
    with pytest.raises(UserError) as error:
        declare(tmp_path)
    file = "codes.jsonl" if format == "jsonl" else "part-0.parquet"
    assert str(error.value) == f"{tmp_path / file}: {message}"
    assert not (tmp_path / artifacts.MANIFEST).exists()


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
@pytest.mark.parametrize("codes", [None, [1.0, 2.5], [True], "1 2", [[1]], ["1"], [2**40]], ids=str)
def test_a_column_that_is_missing_or_of_another_type_is_named(tmp_path, format, codes):
    rows = [{"id": "r7", "text": "x"} | ({} if codes is None else {"codes": codes})]
    write(tmp_path, rows, format)
    expected = "has no field 'codes'" if codes is None else "has no list of codes in 'codes'"
    with pytest.raises(UserError, match=f"row 'r7' {expected}"):
        declare(tmp_path)


def test_what_a_folder_holds_is_unambiguous(tmp_path):
    with pytest.raises(UserError, match=r"holds neither codes.jsonl nor \*.parquet"):
        declare(tmp_path)
    declare(write(tmp_path, GOOD, "jsonl"))
    write(tmp_path, GOOD)
    for call in (declare, lambda folder: examples(folder, CODES)):
        with pytest.raises(UserError, match="codes.jsonl and part-0.parquet; keep one"):
            call(tmp_path)
    with pytest.raises(UserError, match="holds no rows"):
        declare(write(tmp_path / "empty", [], "jsonl"))


@pytest.mark.parametrize(
    "wrong", [{"tokenizer": ""}, {"frame_rate_hz": 0.0}, {"frame_rate_hz": float("nan")},
              {"codebook_size": 0}], ids=str
)  # fmt: skip
def test_what_is_declared_must_make_sense(tmp_path, wrong):
    with pytest.raises(UserError, match="name the tokenizer; the numbers must be above 0"):
        declare(write(tmp_path, GOOD), **wrong)


def test_a_folder_that_is_not_declared_says_what_to_call(tmp_path):
    with pytest.raises(UserError, match="has no stage.json; .*declare_codes"):
        Rows((write(tmp_path, GOOD),), True, CODES).identity()


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_identity_follows_the_files_and_the_tokenizer(tmp_path, monkeypatch, format):
    monkeypatch.chdir(tmp_path)  # a relative folder too
    rows = Rows((write(tmp_path / "codes", GOOD, format),), True, CODES)
    declare("codes")
    before = rows.identity()
    declare("codes")
    assert rows.identity() == before
    declare("codes", tokenizer="tokenizer-b")
    assert rows.identity() != before
    write(tmp_path / "codes", GOOD[:-1], format)
    with pytest.raises(UserError, match="is not what stage.json names"):
        rows.identity()
    declare("codes")
    assert rows.identity() != before


def test_a_part_that_comes_or_goes_is_noticed(tmp_path):
    rows = Rows((write(tmp_path, GOOD, parts=3),), True, CODES)
    declare(tmp_path)
    assert [file.name for file in rows.files()] == [f"part-{i}.parquet" for i in range(3)]
    (tmp_path / "part-1.parquet").rename(tmp_path / "away")
    with pytest.raises(UserError, match="part-1.parquet: is not what stage.json names"):
        rows.identity()
    (tmp_path / "away").rename(tmp_path / "part-1.parquet")
    rows.identity()
    write(tmp_path, GOOD, parts=4)
    with pytest.raises(UserError, match="part-0.parquet: is not what stage.json names"):
        rows.identity()
