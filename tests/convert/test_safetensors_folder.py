"""Broken, hostile and odd folders: one line at once, and nothing outside the folder is read."""

import json
import struct
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from speechlm_jax.convert.language_model import read_config
from speechlm_jax.convert.safetensors_folder import INDEX, SINGLE, Folder
from speechlm_jax.errors import UserError

SHARD = "model-00001-of-00001.safetensors"
F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
VECTOR = np.arange(2, dtype=np.float32)
CONFIG = {
    "model_type": "llama", "vocab_size": 4, "hidden_size": 2, "intermediate_size": 2,
    "num_hidden_layers": 1, "num_attention_heads": 1,
}  # fmt: skip


def refused(folder, told, *, ask=lambda folder: folder.shapes):
    """Refused in one short line, within a second."""
    began = time.process_time()  # not of the clock: others use the machine too
    with pytest.raises(UserError, match=told) as error:
        ask(Folder(folder))
    assert time.process_time() - began < 1
    said = str(error.value)
    assert "\n" not in said and len(said) < 400 + 2 * len(str(folder))


def header(data, body=b"\0" * 8, size=None):
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5\n",
        header({"a": F32}, size=2**60),
        header({"a": F32}, size=2**64 - 1),
        header({"a": F32}, b""),
        header({"a": F32}, b"\0" * 9),
        header({"a": {**F32, "data_offsets": [-8, 0]}}),
        header({"a": {**F32, "data_offsets": [8, 0]}}),
        header({"a": {**F32, "data_offsets": [0, 2**60]}}),
        header({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, b"\0" * 12),
        header({"a": F32, "b": {**F32, "data_offsets": [16, 24]}}, b"\0" * 24),
        header({"a": {**F32, "shape": [2**62, 2**62]}}),
        header({"a": {**F32, "shape": [-2]}}),
        header({"a": {**F32, "dtype": "F31"}}),
        header({"a": {**F32, "dtype": 3}}),
        header([]),
        header(b"[" * 100_000),
        header(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "a": {"dtype": "F32"'
               b', "shape": [2], "data_offsets": [8, 16]}}', b"\0" * 16),
        header(b"\xff\xfe"),
    ],
    ids=range(19),
)  # fmt: skip
@pytest.mark.parametrize("name", [SINGLE, SHARD])
def test_a_file_that_is_not_whole_is_named(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    if name == SHARD:
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": SHARD}}))
    refused(tmp_path, f"{name}: is not a whole safetensors file")


@pytest.mark.parametrize("dtype", ["I64", "BOOL", "F8_E4M3", "U8", "C64"])
def test_weights_that_are_no_plain_numbers_are_named(tmp_path, dtype):
    size = {"I64": 8, "C64": 8}.get(dtype, 1) * 2
    entry = {"a": {**F32, "dtype": dtype, "data_offsets": [0, size]}}
    (tmp_path / SINGLE).write_bytes(header(entry, b"\0" * size))
    refused(tmp_path, f"a is stored as {dtype}; give weights in one of F64, F32")


def test_a_name_on_two_lines_is_refused_on_one(tmp_path):
    (tmp_path / SINGLE).write_bytes(header({"a\nspeechlm: done": F32}))
    refused(tmp_path, r"'a\\nspeechlm: done': is no name of a tensor")


@pytest.mark.parametrize(
    "index, told",
    [
        ("[]", "index.json: is not a JSON object"),
        ("{}", "has no weight_map of tensors and their files"),
        ('{"weight_map": []}', "has no weight_map"),
        ('{"weight_map": {"a": 3}}', "has no weight_map"),
        ('{"weight_map": {"a": null}}', "has no weight_map"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"weight_map": ' + "9" * 5_000 + "}", "is not JSON"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors: in .*, but not there"),
        ('{"weight_map": {"a": "../outside.safetensors"}}', "lies outside the folder"),
        ('{"weight_map": {"a": "sub/../../outside.safetensors"}}', "lies outside the folder"),
        ('{"weight_map": {"a": "/etc/hostname"}}', "lies outside the folder"),
        ('{"weight_map": {"a": ""}}', "lies outside the folder"),
        ('{"weight_map": {"a": "."}}', "lies outside the folder"),
        ('{"weight_map": {"a": "link.safetensors"}}', "lies outside the folder"),
        ('{"weight_map": {"a": "loop.safetensors"}}', "is no name of a file|not there"),
        ('{"weight_map": {"a": "a\\u0000b"}}', "is no name of a file"),
        ('{"weight_map": {"a": "' + "x" * 5_000 + '"}}', "is no name of a file"),
        ('{"weight_map": {"a": "\\ud800"}}', "is no name of a file"),
        ('{"weight_map": {"b": "there.safetensors"}}', "says that b is in there"),
    ],
    ids=lambda value: value[:60],
)
def test_an_index_names_files_of_its_folder_alone(tmp_path, index, told):
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file({"a": VECTOR}, tmp_path / "outside.safetensors")
    save_file({"a": VECTOR}, folder / "there.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    (folder / INDEX).write_text(index, encoding="utf-8")
    refused(folder, told)


@pytest.mark.parametrize("name", [SINGLE, "config.json"])
def test_no_link_out_of_the_folder_is_followed(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file({"a": VECTOR}, tmp_path / "outside")
    (folder / name).symlink_to("../outside")
    ask = (lambda found: found.shapes) if name == SINGLE else (lambda found: found.config)
    refused(folder, "lies outside the folder", ask=ask)


def test_a_snapshot_of_the_hubs_cache_links_to_its_blobs(tmp_path):
    snapshot, blobs = tmp_path / "models--a--b/snapshots/0abc", tmp_path / "models--a--b/blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    save_file({"a": VECTOR}, blobs / "f00d")
    (snapshot / SINGLE).symlink_to("../../blobs/f00d")
    np.testing.assert_array_equal(Folder(snapshot).read("a"), VECTOR)
    (snapshot / SINGLE).unlink()
    save_file({"a": VECTOR}, tmp_path / "elsewhere")
    (snapshot / SINGLE).symlink_to("../../../elsewhere")
    refused(snapshot, "lies outside the folder")


def test_of_a_file_and_an_index_the_file_is_read(tmp_path):
    save_file({"a": VECTOR}, tmp_path / SINGLE)
    (tmp_path / INDEX).write_text('{"weight_map": {"b": "gone"}}')
    assert Folder(tmp_path).file_of == {"a": SINGLE}


@pytest.mark.parametrize(
    "field, value, told",
    [
        ("num_hidden_layers", 2**31 - 1, "says 2147483647 layers; the folder has 1 tensors"),
        (
            "vocab_size",
            2**31 - 1,
            "tensors do not fit config.json: 12 missing: .* and 4 more; 1 unexp",
        ),
        ("hidden_size", 2**31 - 2, "tensors do not fit"),
        ("intermediate_size", 2**31 - 1, "tensors do not fit"),
        ("num_attention_heads", 2**31 - 1, "rotates 1 dimensions|cannot share|tensors do not fit"),
    ],
    ids=str,
)
def test_huge_sizes_are_answered_at_once(tmp_path, field, value, told):
    save_file({"a": VECTOR}, tmp_path / SINGLE)
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, field: value}))
    refused(tmp_path, told, ask=read_config)


def test_a_tied_models_other_output_layer_is_refused(released, tmp_path):
    folder = Folder(released[1])
    _, config = read_config(folder)
    tensors = {name: folder.read(name) for name in folder.shapes}
    head = tensors["model.embed_tokens.weight"]
    tied = {**folder.config, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(tied))
    save_file({**tensors, "lm_head.weight": head}, tmp_path / SINGLE)
    assert read_config(Folder(tmp_path))[1].tied
    save_file({**tensors, "lm_head.weight": head + 1}, tmp_path / SINGLE)
    refused(tmp_path, "tie_word_embeddings is true, but lm_head.weight is not", ask=read_config)
