"""What a bundle.json may name: folders in it or beside it; whatever else it says is one line."""

import json

import pytest

from speechlm_jax import config as configs
from speechlm_jax.bundle.contents import BUNDLE, Contents, Part, read_contents, write_contents
from speechlm_jax.errors import UserError
from speechlm_jax.vocab import Vocab


def test_what_is_written_is_read(tmp_path):
    vocab = Vocab(12, 8, 12.5, "text", "tokenizer", voices=("Ann",))
    parts = {"text_to_token": Part("../tts", "text.model", vocab, "f"), "lm": Part(".")}
    contents = Contents("../my text.model", vocab, parts)
    write_contents(tmp_path, contents)
    assert read_contents(tmp_path) == contents


@pytest.mark.parametrize("field", ["folder", "text", "parts' text"])
@pytest.mark.parametrize(
    "name",
    ["/etc", "..", "../", "../..", "../../a", "a/../../b", "..//etc", "gs://b/a", "../gs://b/a",
     "a\0b", "../.", "./.."],
)  # fmt: skip
def test_paths_out_of_the_folder_are_refused(tmp_path, field, name):
    part = {"folder": name if field == "folder" else "lm", "text": ""}
    if field == "parts' text":
        part["text"] = name
    data = {"version": 1, "text": name if field == "text" else "", "parts": {"lm": part}}
    (tmp_path / BUNDLE).write_text(json.dumps(data))
    with pytest.raises(UserError, match="nor beside it") as error:
        read_contents(tmp_path)
    assert BUNDLE in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "data",
    [
        [], "a", 3, None, {"version": 2}, {"parts": {"vocoder": {"folder": "a"}}}, {"strange": 1},
        {"parts": {"lm": {}}}, {"parts": {"lm": "lm"}}, {"parts": ["lm"]}, {"vocab": {}},
        {"parts": {"lm": {"folder": 3}}}, {"parts": {"lm": {"folder": ""}}},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_bundle_is_one_line(tmp_path, data):
    (tmp_path / BUNDLE).write_text(json.dumps(data))
    with pytest.raises(UserError, match="bundle.json: is no bundle of this version") as error:
        read_contents(tmp_path)
    assert "\n" not in str(error.value)


def test_the_json_is_small_and_names_its_version():
    data = configs.to_json(Contents("text.model", parts={"lm": Part("lm", "text.model")}))
    assert data["version"] == 1
    assert data["parts"]["lm"] == {
        "class": "Part", "folder": "lm", "text": "text.model", "vocab": None, "fingerprint": "",
    }  # fmt: skip
