"""A row of Parquet is the row of JSON with the same fields; no file is held whole."""

import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from speechlm_jax import artifacts
from speechlm_jax.data import parquet
from speechlm_jax.data.parquet import read_parquet
from speechlm_jax.errors import UserError


def write(path, rows, **options):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return path


@pytest.mark.parametrize(
    "rows",
    [
        [{"id": "a", "codes": [1, 2], "text": "é"}, {"id": "b", "codes": []}, {"id": "c"}],
        [{"id": "a", "segments": [{"text": "it"}, {"codes": [3], "text": "is"}]}],
        [{"id": "a", "turns": [{"role": "user", "segments": [{"codes": [3]}, {"text": "is"}]}]}],
    ],
)
def test_rows_are_those_of_json_lines(tmp_path, rows):
    artifacts.write_jsonl(tmp_path / "a.jsonl", rows)
    found = list(read_parquet(write(tmp_path / "a.parquet", rows)))
    assert found == list(artifacts.read_jsonl(tmp_path / "a.jsonl")) == rows


def test_batches_and_row_groups_leave_no_trace(tmp_path, monkeypatch):
    rows = [{"id": str(i), "codes": list(range(i % 7))} for i in range(100)]
    path = write(tmp_path / "a.parquet", rows, row_group_size=33)
    for size in (1, 32, 1000):
        monkeypatch.setattr(parquet, "BATCH_ROWS", size)
        assert list(read_parquet(path)) == rows


@pytest.mark.parametrize("row_group_size", [1_000, 10_000])
def test_a_file_is_never_held_whole(tmp_path, row_group_size):
    # Without compression or a dictionary, so that the file is as large as its table.
    codes = np.random.default_rng(0).integers(0, 2**60, (10_000, 50))
    table = pyarrow.table({"id": np.arange(10_000).astype(str), "codes": list(codes)})
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(
        table,
        path,
        row_group_size=row_group_size,
        compression="none",
        use_dictionary=False,
        data_page_size=1 << 16,
    )
    del table
    before, most, count = pyarrow.total_allocated_bytes(), 0, 0
    for row in read_parquet(path):
        count += 1
        if count % 250 == 1:
            most = max(most, pyarrow.total_allocated_bytes() - before)
            assert row["codes"] == codes[count - 1].tolist()
    # Some pages and a batch, not the four megabytes.
    assert count == 10_000 and 0 < most < path.stat().st_size / 4


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: b"hello" * 20,
        lambda data: data[: len(data) // 2],
        lambda data: data[:6] + bytes(60) + data[66:],  # the header of a page
        lambda data: data.replace(b"\x11\x22\x33\x44", b"\x11\x22\x33\x45"),  # one bit of a page
    ],
)
def test_a_broken_file_is_named_in_one_line(tmp_path, spoil):
    path = tmp_path / "a.parquet"
    rows = [{"id": "a", "codes": [0x44332211] * 9}]
    write(path, rows, write_page_checksum=True, use_dictionary=False, compression="none")
    data = path.read_bytes()
    assert spoil(data) != data
    path.write_bytes(spoil(data))
    with pytest.raises(UserError) as error:
        list(read_parquet(path))
    assert str(error.value).startswith(f"{path}: cannot be read as Parquet (")
    assert "\n" not in str(error.value)


def test_a_missing_file_or_library_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="a.parquet: no such file"):
        list(read_parquet(tmp_path / "a.parquet"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        list(read_parquet(tmp_path / "a.parquet"))
