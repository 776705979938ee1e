"""Codes folders say whose codes they hold, and give back what was written."""

import dataclasses
import json

import pytest

from speechlm_jax import artifacts
from speechlm_jax.codes import (
    CODES,
    CodesIdentity,
    read_codes,
    read_identity,
    write_codes,
)
from speechlm_jax.errors import UserError
from speechlm_jax.vocab import Vocab

OURS = CodesIdentity("tokenizer-a", 12.5, 16)
ROWS = [{"id": "a", "codes": [1, 2]}, {"id": "b", "codes": []}]


def write(folder, rows=ROWS):
    counts = {"clips": 0}

    def counted():
        for row in rows:
            counts["clips"] += 1
            yield row

    return write_codes(folder, counted(), OURS, inputs={}, config={}, counts=counts)


def test_a_folder_gives_back_its_rows_and_its_identity(tmp_path):
    assert write(tmp_path).counts == {"clips": 2}
    assert list(read_codes(tmp_path)) == ROWS and read_identity(tmp_path) == OURS
    assert not artifacts.verify(tmp_path)


def test_the_three_fields_stand_in_the_manifest_as_ever(tmp_path):
    """Folders of earlier versions are read, and theirs read these."""
    write(tmp_path)
    extra = json.loads((tmp_path / artifacts.MANIFEST).read_text())["extra"]
    assert list(extra.items()) == [
        ("tokenizer", "tokenizer-a"), ("frame_rate_hz", 12.5), ("codebook_size", 16),
    ]  # fmt: skip


def test_a_kill_while_rows_are_written_leaves_no_finished_folder(tmp_path):
    write(tmp_path)

    def killed():
        yield ROWS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, killed())
    assert not (tmp_path / artifacts.MANIFEST).exists()
    assert list(read_codes(tmp_path)) == ROWS  # of before


@pytest.mark.parametrize("field", ["tokenizer", "frame_rate_hz", "codebook_size"])
def test_a_manifest_without_a_field_or_with_a_wrong_one_is_named(tmp_path, field):
    write(tmp_path)
    path = tmp_path / artifacts.MANIFEST
    data = json.loads(path.read_text())
    for value in (None, [], -1 if field != "tokenizer" else 3):
        data["extra"][field] = value
        path.write_text(json.dumps(data))
        with pytest.raises(UserError, match=field):
            read_identity(tmp_path)
    del data["extra"][field]
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=f"names no {field} of codes; run its stage again"):
        read_identity(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"), [("tokenizer", "b"), ("frame_rate_hz", 25.0), ("codebook_size", 32)]
)
def test_codes_of_another_tokenizer_are_refused_with_both_sides(field, value):
    other = dataclasses.replace(OURS, **{field: value})
    OURS.require_same(dataclasses.replace(other, **{field: getattr(OURS, field)}), "a", "b", "")
    with pytest.raises(UserError) as error:
        OURS.require_same(other, "a has", "b has", "mend it")
    assert str(error.value) == f"a has {field} {getattr(OURS, field)!r}, b has {value!r}; mend it"


def test_a_vocabulary_has_the_codes_that_it_was_joined_with():
    assert Vocab(12, 16, 12.5, "text", "tokenizer-a").codes == OURS
    assert CODES == "codes.jsonl"
