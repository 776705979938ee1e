"""Offsets name each row's bytes, whatever the rows' sizes; the library reads from those alone."""

import contextlib
import hashlib
import json
import struct
import time

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from speechlm_jax import artifacts
from speechlm_jax.data import row_files
from speechlm_jax.data.row_files import RowFile, find_offsets
from speechlm_jax.data.rows import WRITER_OPTIONS, RowShards, add_offsets
from speechlm_jax.errors import UserError


def write(path, sizes, seed=0):
    random = np.random.default_rng(seed)
    records = [random.integers(0, 256, size, np.uint8).tobytes() for size in sizes]
    writer = ArrayRecordWriter(str(path), WRITER_OPTIONS)
    for record in records:
        writer.write(record)
    writer.close()
    return records


def sizes_of(kind, seed):
    random = np.random.default_rng(seed)
    return {
        "none": [],
        "one": [100],
        "small": random.integers(1, 300, 500).tolist(),
        "blocks": random.integers(65_300, 65_600, 40).tolist(),  # of 64 KiB, nearly
        "large": random.integers(1, 400_000, 12).tolist(),
        "mixed": np.exp(random.uniform(0, 12, 60)).astype(int).tolist(),
    }[kind]


@pytest.mark.parametrize("kind", ["none", "one", "small", "blocks", "large", "mixed"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_row_is_read_from_its_bytes_and_the_tail_alone(tmp_path, kind, seed):
    records = write(tmp_path / "whole", sizes_of(kind, seed), seed)
    whole = (tmp_path / "whole").read_bytes()
    offsets = find_offsets(tmp_path / "whole", len(records)).tolist()
    assert offsets == sorted(offsets) and offsets[-1] < len(whole)
    sparse = tmp_path / "sparse"
    with open(sparse, "wb") as file:
        file.truncate(len(whole))
        file.seek(offsets[-1])
        file.write(whole[offsets[-1] :])
    # opened before any row is there, and kept open
    reader = ArrayRecordReader(
        str(sparse), "readahead_buffer_size:0", file_reader_buffer_size=32768
    )
    assert reader.num_records() == len(records)
    for row in np.random.default_rng(seed).permutation(len(records)):
        start, end = offsets[row], offsets[row + 1]
        with pytest.raises(RuntimeError):
            reader.read([row])
        with open(sparse, "rb+") as file:
            file.seek(start)
            file.write(whole[start:end])
        assert reader.read([row])[0] == records[row]
        with open(sparse, "rb+") as file:  # what stood there is not remembered
            file.seek(start)
            file.write(bytes(end - start))
        with pytest.raises(RuntimeError):
            reader.read([row])


def test_files_that_have_not_one_chunk_a_row_are_refused(tmp_path):
    write(tmp_path / "rows", [10, 20, 30])
    for wrong in (2, 4, 9):
        with pytest.raises(ValueError, match="not one chunk for each"):
            find_offsets(tmp_path / "rows", wrong)
    writer = ArrayRecordWriter(str(tmp_path / "pairs"), "group_size:2")
    for _ in range(4):
        writer.write(b"x")
    writer.close()
    with pytest.raises(ValueError, match="not one chunk for each"):
        find_offsets(tmp_path / "pairs", 4)
    (tmp_path / "short").write_bytes((tmp_path / "rows").read_bytes()[:70])
    with pytest.raises(ValueError, match=r"short: "):
        find_offsets(tmp_path / "short", 3)


def test_the_manifest_names_the_offsets_and_its_fingerprint_does_not_depend_on_them(
    tmp_path, write_task
):
    write_task(tmp_path, [5, 0, 12])
    made = artifacts.read_manifest(tmp_path)
    for file in (RowFile(**file) for file in made.extra["row_files"]):
        data = (tmp_path / file.offsets_name).read_bytes()
        assert len(data) == 8 * (file.rows + 1)
        assert hashlib.sha256(data).hexdigest() == file.offsets
    # a folder of an earlier version
    data = json.loads((tmp_path / "stage.json").read_text())
    for file in data["extra"]["row_files"]:
        del file["offsets"]
        (tmp_path / f"{file['name']}.offsets").unlink()
    artifacts.write_json(tmp_path / "stage.json", data)
    old = artifacts.read_manifest(tmp_path)
    assert old.fingerprint == made.fingerprint
    assert len(RowShards(tmp_path)) == 17 and RowShards(tmp_path)[16]["ids"].shape == (256,)
    add_offsets(tmp_path)
    assert artifacts.read_manifest(tmp_path) == made


def test_many_files_may_be_open(monkeypatch):
    asked = []
    monkeypatch.setattr(row_files.resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(row_files.resource, "setrlimit", lambda _, limits: asked.append(limits))
    row_files.allow_open_files(0)
    assert not asked
    row_files.allow_open_files(500)
    assert asked == [(4096, 4096)]
    with pytest.raises(UserError, match="this host may open 4096"):
        row_files.allow_open_files(5000)


def chunk(length, records=0, kind="r"):
    return struct.pack("<8xQ8xQ8x", length, records << 8 | ord(kind))


@pytest.mark.parametrize(
    "data",
    [
        chunk(1 << 40, 1), chunk((1 << 64) - 1, 1), chunk(1 << 40, kind="s"), chunk(100, 1),
        chunk(0, (1 << 56) - 1), chunk(0, 1, kind="x") * 100, bytes(100_000), b"",
        *(np.random.default_rng(seed).integers(0, 256, 1 << 17, np.uint8).tobytes()
          for seed in range(4)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rows", [-1, 0, 1, 3, 1 << 62])
def test_bytes_that_are_no_rows_are_refused_at_once(tmp_path, data, rows):
    (tmp_path / "rows").write_bytes(bytes(24) + data)
    begin = time.process_time()
    with pytest.raises(ValueError, match="rows"):
        find_offsets(tmp_path / "rows", rows)
    assert time.process_time() - begin < 0.5


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_are_refused_or_read_as_they_were(tmp_path, seed):
    random = np.random.default_rng(seed)
    write(tmp_path / "rows", sizes_of("small", seed)[:50], seed)
    whole = bytearray((tmp_path / "rows").read_bytes())
    for _ in range(60):
        data = bytearray(whole)
        for at in random.integers(0, 4000, random.integers(1, 4)):
            data[at] = random.integers(256)
        (tmp_path / "rows").write_bytes(data[: random.choice([len(data), 5000])])
        begin = time.process_time()
        with contextlib.suppress(ValueError):
            offsets = find_offsets(tmp_path / "rows", 50)
            assert len(offsets) == 51 and np.all(np.diff(offsets.astype(np.int64)) >= 0)
        assert time.process_time() - begin < 0.5


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "../rows"), ("name", "/etc/passwd"), ("name", ""), ("name", "a\0b"),
     ("name", "x" * 250), ("name", "x" * 300), ("name", 3),
     ("rows", -1), ("rows", 1 << 62), ("rows", "3"), ("rows", 1.5), ("rows", True),
     ("size_bytes", -1), ("size_bytes", None), ("strange", 1)],
)  # fmt: skip
def test_a_manifest_that_names_impossible_files_is_damaged(tmp_path, write_task, field, value):
    write_task(tmp_path, [5])
    data = json.loads((tmp_path / "stage.json").read_text())
    data["extra"]["row_files"][0][field] = value
    artifacts.write_json(tmp_path / "stage.json", data)
    for read in (RowShards, add_offsets):
        with pytest.raises(UserError, match=r"stage.json is damaged \(.*prepare again"):
            read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"extra": {}}, {"extra": []}, {"counts": {}}, {"counts": {"rows": -1}}, {"files": 3},
     {"counts": {"rows": 5, "text_tokens": "9", "speech_tokens": 1}}, {"kind": None}],
)  # fmt: skip
def test_a_manifest_that_lacks_what_is_needed_is_damaged(tmp_path, write_task, change):
    write_task(tmp_path, [5])
    data = json.loads((tmp_path / "stage.json").read_text())
    artifacts.write_json(tmp_path / "stage.json", data | change)
    with pytest.raises(UserError, match="stage.json.* is (damaged|not a stage manifest)"):
        RowShards(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("length", 0), ("length", -3), ("length", "64"), ("vocab", {"codebook_size": -5}),
     ("vocab", {"codebook_size": 1 << 60}), ("vocab", {"pad_to_multiple": 0}), ("vocab", 3)],
)  # fmt: skip
def test_numbers_that_cannot_be_are_refused(tmp_path, write_task, field, value):
    write_task(tmp_path, [5])
    data = json.loads((tmp_path / "stage.json").read_text())
    known = data["extra"][field]
    data["extra"][field] = known | value if isinstance(value, dict) else value
    artifacts.write_json(tmp_path / "stage.json", data)
    with pytest.raises(UserError, match="stage.json is damaged"):
        RowShards(tmp_path)
