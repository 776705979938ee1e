"""One split by content over all tasks of a mixture; few documents give a few that are held out."""

import dataclasses

import numpy as np
import pytest

from speechlm_jax import artifacts
from speechlm_jax.data import splits
from speechlm_jax.data.sources import SPLITS, Rows
from speechlm_jax.data.splits import FEW, KEYS, agree, count_trained, hold_out
from speechlm_jax.errors import UserError


def task(path, rows, field="text", **options) -> Rows:
    artifacts.write_jsonl(path, rows)
    return Rows((path,), False, {field: field}, **options)


def texts(rows: Rows) -> dict[str, list[str]]:
    name = next(iter(rows.fields))
    return {split: [e[name] for e in rows.examples(rows.files(), split)] for split in SPLITS}


@pytest.mark.parametrize(
    ("number", "held_out"),
    [(1, 0), (2, 1), (7, 1), (8, 1), (16, 2), (63, 7), (64, 8), (328, 8)],
)
@pytest.mark.parametrize("prefix", ["a", "b", "c"])
def test_few_documents_hold_out_a_few_by_the_rule(tmp_path, number, held_out, prefix):
    rows = [{"id": str(i), "text": f"{prefix} {i}"} for i in range(number)]
    found = texts(hold_out(task(tmp_path / "a.jsonl", rows)))
    by_ratio = len(texts(task(tmp_path / "a.jsonl", rows))["validation"])
    assert len(found["validation"]) == max(held_out, by_ratio)
    assert len(found["train"]) == number - len(found["validation"])


def test_many_documents_go_by_the_ratio_alone_and_are_not_read_to_their_end(tmp_path, monkeypatch):
    rows = [{"id": str(i), "text": f"text {i}"} for i in range(4000)]
    made = task(tmp_path / "a.jsonl", rows)
    read = []
    monkeypatch.setattr(
        splits, "read_rows", lambda file: (read.append(1) or row for row in list(rows))
    )
    assert hold_out(made) == made and len(read) < 2000
    none = dataclasses.replace(made, validation_ratio=0.0)
    assert hold_out(none) == none


def test_a_few_things_said_again_and_again_are_split_by_id(tmp_path):
    said = [f"word{i}" for i in range(10)]
    rows = [{"id": str(i), "text": said[i % 10]} for i in range(600)]
    found = texts(hold_out(task(tmp_path / "a.jsonl", rows)))
    assert set(found["train"]) == set(said) and FEW <= len(found["validation"]) < 30
    same = [{"id": str(i), "text": "a red cat"} for i in range(30)]
    found = texts(hold_out(task(tmp_path / "a.jsonl", same)))
    assert len(found["validation"]) == 3 and len(found["train"]) == 27
    twice = [{"id": f"{i} {k}", "text": f"text {i}"} for i in range(300) for k in "ab"]
    found = texts(hold_out(task(tmp_path / "a.jsonl", twice)))
    assert not set(found["train"]) & set(found["validation"])
    assert len(found["validation"]) == 2 * FEW


def test_what_is_held_out_holds_something(tmp_path):
    rows = [{"id": str(i), "text": f"text {i}" if i % 8 == 0 else " \u200b"} for i in range(128)]
    found = texts(hold_out(task(tmp_path / "a.jsonl", rows)))
    assert len([text for text in found["validation"] if text.strip(" \u200b")]) == 2
    pairs = [{**row, "codes": [1] * (i % 16 == 0)} for i, row in enumerate(rows)]
    made = task(tmp_path / "b.jsonl", pairs)
    made = hold_out(dataclasses.replace(made, fields={"text": "text", "codes": "codes"}))
    assert len(made.held_out) == 1


def test_a_ratio_is_a_fraction(tmp_path):
    for ratio in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="validation_ratio .*must be from 0 to 1"):
            task(tmp_path / "a.jsonl", [], validation_ratio=ratio)


def test_rows_that_name_their_split_keep_it_and_count(tmp_path):
    rows = [{"id": str(i), "text": f"text {i}", "split": SPLITS[i < 3]} for i in range(40)]
    found = texts(hold_out(task(tmp_path / "a.jsonl", rows)))
    assert found["validation"] == ["text 0", "text 1", "text 2"]
    for row in rows[3:]:
        del row["split"]
    found = texts(hold_out(task(tmp_path / "a.jsonl", rows)))
    assert {"text 0", "text 1", "text 2"} <= set(found["validation"])
    assert len(found["validation"]) in (4, 5)  # an eighth of 37 is 4


def documents(number, start=0):
    return [f"Document {i}: it is, of course, No. {i * i}." for i in range(start, start + number)]


def test_formats_of_one_document_are_on_one_side(tmp_path):
    said = documents(700)
    segments = [[{"text": t[:9]}, {"codes": [1], "text": t[9:14]}, {"text": t[14:]}] for t in said]
    tasks = agree(
        {
            "text": task(tmp_path / "t.jsonl", [{"text": t} for t in said]),
            "lower": task(tmp_path / "l.jsonl", [{"text": t.lower()[:-1]} for t in said]),
            "mixed": task(tmp_path / "s.jsonl", [{"segments": s} for s in segments], "segments"),
            "few": task(tmp_path / "f.jsonl", [{"text": t.upper()} for t in said[:20]]),
            "other": task(tmp_path / "o.jsonl", [{"text": t} for t in documents(700, 9000)]),
        },
        out=tmp_path,
    )
    keys = {name: {} for name in tasks}
    for name, rows in tasks.items():
        for row in splits.read_rows(rows.files()[0]):
            keys[name].setdefault(rows.split_of(row), set()).add(rows.key(row))
    assert len(keys["few"]["validation"]) == 2 and len(keys["text"]["validation"]) >= FEW
    held = set().union(*(sides["validation"] for sides in keys.values()))
    assert not held & set().union(*(sides["train"] for sides in keys.values()))
    # a task that has nothing of the others is as it would be alone
    assert tasks["other"] == hold_out(tasks["other"])
    assert tasks["text"].identity() != hold_out(tasks["text"]).identity()


def test_what_another_task_holds_out_is_found_once_and_again_when_asked_again(
    tmp_path, monkeypatch
):
    tasks = {
        "text": task(tmp_path / "t.jsonl", [{"text": t} for t in documents(3000)]),
        "few": task(tmp_path / "f.jsonl", [{"text": t} for t in documents(10)]),
    }
    first = agree(tasks, out=tmp_path / "out")
    monkeypatch.setattr(splits, "_rows", lambda rows: pytest.fail("read to its end again"))
    monkeypatch.setattr(splits, "hold_out", lambda rows: held[rows.places])
    held = {
        tasks[name].places: rows for name, rows in (("few", first["few"]), ("text", tasks["text"]))
    }
    assert agree(tasks, out=tmp_path / "out") == first


def test_files_without_a_document_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("\n \n")
    with pytest.raises(UserError, match="a.txt: holds no document"):
        hold_out(Rows((tmp_path / "a.txt",), False, {"text": "text"}))


@pytest.mark.parametrize(
    ("row", "options", "told"),
    [
        ({"content": "a"}, {}, r"a.jsonl: row 'a.jsonl:1' has no field 'text'$"),
        ({"text": 5}, {}, "row 'a.jsonl:1' has no text in 'text'"),
        ({"text": "a"}, {"keep": lambda row: False}, "`keep` takes none of its 1 rows"),
        ({"text": " "}, {}, "its 1 rows have nothing to read or to hear"),
        ({"codes": [1]}, {"fields": {"codes": "codes", "text": "text"}},
         "has no field 'text'; for codes of recordings write it to manifest.jsonl"),
        ({"codes": [1], "text": "..."}, {"fields": {"codes": "codes", "text": "text"}},
         "its 1 rows have nothing"),
    ],
)  # fmt: skip
def test_rows_of_which_no_document_can_be_made_say_why(tmp_path, row, options, told):
    artifacts.write_jsonl(tmp_path / "a.jsonl", [row])
    rows = dataclasses.replace(Rows((tmp_path / "a.jsonl",), False, {"text": "text"}), **options)
    with pytest.raises(UserError, match=told):
        hold_out(rows)


@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_contents_that_train_somewhere_are_counted(tmp_path, seed):
    random = np.random.default_rng(seed)
    sides = {"train": {}, "validation": {}}
    for name in "abc":
        for split, most in (("train", 300), ("validation", 40)):
            keys = random.integers(0, 2**64, 500, np.uint64)[random.integers(0, 500, most)]
            if split == "validation" and name != "c":
                keys[: 10 + seed] = sides["train"]["a"][: 10 + seed]
            sides[split][name] = keys
            folder = tmp_path / name / split
            folder.mkdir(parents=True)
            for i, part in enumerate(np.array_split(keys, 3)):
                part.astype(">u8").tofile(folder / f"rows-{i}{KEYS}")
    trained = set(np.concatenate(list(sides["train"].values())).tolist())
    expected = {n: len(trained & set(keys.tolist())) for n, keys in sides["validation"].items()}
    assert count_trained({name: tmp_path / name for name in "abc"}) == expected
    assert expected["a"] and expected["b"] and not expected["c"]
    assert count_trained({"none": tmp_path / "none"}) == {"none": 0}
