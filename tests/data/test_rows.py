"""Rows survive their bytes; damaged or foreign shards are refused with one line."""

import dataclasses

import numpy as np
import pytest

from speechlm_jax.data.packing import Document, Row, pack
from speechlm_jax.data.rows import RowFile, RowLayout, RowShards, write_row_manifest, write_rows
from speechlm_jax.errors import UserError
from speechlm_jax.vocab import Vocab

SMALL = Vocab(50, 16, 12.5, "text", "tokenizer")
LARGE = dataclasses.replace(SMALL, text_size=151_552)


def make_rows(vocab: Vocab, length: int, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    documents = [
        Document(rng.integers(0, vocab.size, n).astype(np.int32), rng.random(n) < 0.5)
        for n in rng.integers(1, 2 * length, 40)
    ]
    return list(pack(documents, length=length))


def make_shards(folder, vocab=SMALL, length=24):
    rows, files, counts = (
        make_rows(vocab, length),
        [],
        {"rows": 0, "text_tokens": 0, "speech_tokens": 0},
    )
    for number, part in enumerate((rows[:5], rows[5:])):
        path = folder / f"rows-{number}.arrayrecord"
        made = write_rows(path, part, vocab=vocab, length=length)
        files.append(RowFile(path.name, made.rows, path.stat().st_size))
        counts = {name: counts[name] + getattr(made, name) for name in counts}
    write_row_manifest(
        folder, files, task="t", split="train", vocab=vocab, length=length,
        counts=counts, inputs={}, config={}, seed=0,
    )  # fmt: skip
    return rows


@pytest.mark.parametrize(("vocab", "length"), [(SMALL, 17), (LARGE, 64), (SMALL, 70_000)])
def test_bytes_are_the_inverse_of_rows(vocab, length):
    layout = RowLayout.of(vocab, length=length)
    for row in make_rows(vocab, length)[:3]:
        data = layout.row_to_bytes(row)
        assert len(data) == layout.record_bytes
        for name, value in vars(layout.bytes_to_row(data)).items():
            np.testing.assert_array_equal(value, getattr(row, name))


def test_what_does_not_fit_is_refused():
    row = make_rows(LARGE, 16)[0]
    wide = dataclasses.replace(row, ids=np.full(16, 70_000, np.int32))
    with pytest.raises(ValueError, match="do not fit"):
        RowLayout(16, 2).row_to_bytes(wide)
    with pytest.raises(ValueError, match="a record of"):
        RowLayout(16, 2).bytes_to_row(b"short")


def test_shards_give_rows_by_number_across_files(tmp_path):
    rows = make_shards(tmp_path)
    shards = RowShards(tmp_path, vocab=SMALL)
    assert (len(shards), shards.task, shards.length) == (len(rows), "t", 24)
    for number in np.random.default_rng(0).permutation(len(rows)):
        got = shards[number]
        for name in ("ids", "segments", "positions", "loss_mask"):
            np.testing.assert_array_equal(got[name], getattr(rows[number], name))
        assert got["ids"].dtype == np.int32 and got["loss_mask"].dtype == np.float32
    with pytest.raises(IndexError):
        shards[len(rows)]
    shards.verify()


def test_counts_are_of_real_tokens_by_modality(tmp_path):
    rows = make_shards(tmp_path)
    counts = RowShards(tmp_path).counts
    ids = np.concatenate([row.ids[row.segments > 0] for row in rows])
    assert counts["speech_tokens"] == SMALL.is_speech(ids).sum()
    assert counts["text_tokens"] + counts["speech_tokens"] == len(ids)


def test_another_vocabulary_is_refused_with_both_sides_named(tmp_path):
    make_shards(tmp_path)
    other = dataclasses.replace(SMALL, tokenizer_fingerprint="retrained")
    with pytest.raises(
        UserError, match=r"tokenizer_fingerprint.*'retrained'.*'tokenizer'"
    ) as error:
        RowShards(tmp_path, vocab=other)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_damage_is_found(tmp_path):
    make_shards(tmp_path)
    path = tmp_path / "rows-1.arrayrecord"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match="rows-1.arrayrecord changed"):
        RowShards(tmp_path).verify()
    path.write_bytes(bytes(data[:-7]))
    with pytest.raises(UserError, match="bytes, not"):
        RowShards(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        RowShards(tmp_path)


def test_an_id_beyond_the_vocabulary_reaches_no_model(tmp_path):
    """Rows made elsewhere, whose manifest names a smaller vocabulary of the same width."""
    larger = dataclasses.replace(SMALL, text_size=30_000)
    rows = make_rows(larger, 24)
    made = write_rows(tmp_path / "a.arrayrecord", rows, vocab=larger, length=24)
    file = RowFile("a.arrayrecord", made.rows, (tmp_path / "a.arrayrecord").stat().st_size)
    write_row_manifest(
        tmp_path, [file], task="t", split="train", vocab=SMALL, length=24,
        counts=dataclasses.asdict(made), inputs={}, config={}, seed=0,
    )  # fmt: skip
    shards = RowShards(tmp_path, vocab=SMALL)
    most = int(rows[1].ids.max())
    with pytest.raises(UserError, match=f"row 1 is damaged .id {most}; the vocabulary has ids 0.."):
        shards[1]


def test_files_are_the_same_bytes_each_time(tmp_path):
    rows = make_rows(SMALL, 24)
    for name in "ab":
        write_rows(tmp_path / name, rows, vocab=SMALL, length=24)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_failed_write_leaves_nothing(tmp_path):
    def broken():
        yield from make_rows(SMALL, 24)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_rows(tmp_path / "rows", broken(), vocab=SMALL, length=24)
    assert list(tmp_path.iterdir()) == []
