"""Chat templates as `transformers` renders them, and ends of generation, before and after."""

import json
import logging
import shutil

import pytest

from speechlm_jax.convert.companions import Companions, read_companions
from speechlm_jax.convert.tokenizers import token_ids
from speechlm_jax.errors import UserError

transformers = pytest.importorskip("transformers", reason="needs the `oracles` extra")

SIZE = 300
EOS = ("<|endoftext|>", 285)
TALK = [{"role": "user", "content": "what is it"}, {"role": "assistant", "content": "the cat"}]


@pytest.fixture
def folder(tokenizer_files, tmp_path):
    return shutil.copytree(tokenizer_files, tmp_path / "released")


def edit(folder, name, **fields):
    """Changes fields of a JSON file; those that are None go."""
    path = folder / name
    data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    data = {key: value for key, value in {**data, **fields}.items() if value is not None}
    path.write_text(json.dumps(data), encoding="utf-8")


def read(folder):
    tokens = token_ids((folder / "tokenizer.json").read_bytes())
    return read_companions(folder, tokens, size=SIZE)


def exported(folder, tmp_path, eos=EOS):
    """What an export of a base writes, opened by `transformers`."""
    read(folder).write(tmp_path / "base")
    shutil.copy(folder / "tokenizer.json", tmp_path / "base")
    out = tmp_path / "out"
    read(tmp_path / "base").of_export(length=64, eos=eos).write(out)
    shutil.copy(folder / "tokenizer.json", out)
    return transformers.AutoTokenizer.from_pretrained(out), out


def plain(folder):
    """The released tokenizer, without the code that it asks for."""
    edit(folder, "tokenizer_config.json", auto_map=None, tokenizer_class="PreTrainedTokenizerFast")
    return transformers.AutoTokenizer.from_pretrained(folder)


OTHER = "{% for m in messages %}{{ m.content }}|{% endfor %}"


@pytest.mark.parametrize("where", ["field", "file", "files", "list"])
def test_a_chat_is_rendered_as_before(folder, tmp_path, where):
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    if where != "field":
        edit(folder, "tokenizer_config.json", chat_template=None)
    if where in ("file", "files"):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    if where == "files":
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates/other.jinja").write_text(OTHER, encoding="utf-8")
    if where == "list":
        both = [{"name": "default", "template": template}, {"name": "other", "template": OTHER}]
        edit(folder, "tokenizer_config.json", chat_template=both)
    before, (after, _) = plain(folder), exported(folder, tmp_path)
    assert after.chat_template == before.chat_template is not None
    for more in ({}, {"add_generation_prompt": True}):
        said = before.apply_chat_template(TALK, tokenize=False, **more)
        assert after.apply_chat_template(TALK, tokenize=False, **more) == said
        assert "<sop><|user|>\nwhat is it<|user|>" in said
    if where in ("files", "list"):
        assert after.apply_chat_template(TALK, chat_template="other", tokenize=False) == (
            "what is it|the cat|"
        )
    assert after.special_tokens_map == {"unk_token": EOS[0], **before.special_tokens_map}
    assert after.padding_side == "left" and len(after) == len(before)


def test_old_tokens_map_is_read_and_the_newer_file_goes_first(folder):
    edit(folder, "tokenizer_config.json", eos_token=None)
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": {"content": "<|endoftext|>", "lstrip": False}, "bos_token": "the"})
    )
    found = read(folder)
    assert found.eos == "<|endoftext|>" and found.tokenizer["bos_token"] == "<sop>"


def test_answers_end_where_they_ended_and_where_documents_do(folder, tmp_path):
    _, out = exported(folder, tmp_path, eos=("<|eos|>", 301))
    was = json.loads((folder / "generation_config.json").read_text())
    now = transformers.GenerationConfig.from_pretrained(out)
    assert now.eos_token_id == [*was["eos_token_id"], 301]
    assert (now.temperature, now.top_p, now.pad_token_id) == (0.7, 0.8, was["pad_token_id"])
    again = read(folder).of_export(length=8, eos=("x", was["eos_token_id"][0]))
    assert again.generation["eos_token_id"] == was["eos_token_id"], "once each"


def test_ends_may_stand_in_the_models_config(folder):
    (folder / "generation_config.json").unlink()
    edit(folder, "config.json", eos_token_id=[281, 282])
    assert read(folder).generation == {"eos_token_id": [281, 282]}


def test_without_companions_documents_end_alone():
    made = Companions().of_export(length=64, eos=EOS)
    assert made.generation == {"eos_token_id": 285} and made.tokenizer["eos_token"] == EOS[0]


def test_what_names_no_id_of_the_text_is_dropped_aloud(folder, caplog):
    edit(folder, "generation_config.json", eos_token_id=[285, 300], pad_token_id=-1)
    edit(folder, "tokenizer_config.json", pad_token="[PAD]")
    with caplog.at_level(logging.WARNING, "speechlm.convert"):
        found = read(folder)
    assert found.generation["eos_token_id"] == [285] and "pad_token_id" not in found.generation
    assert "pad_token" not in found.tokenizer
    assert "pad_token: '[PAD]' is no token" in caplog.text and "eos_token_id names" in caplog.text


@pytest.mark.parametrize(
    "name, data, told",
    [
        ("tokenizer_config.json", "[]", "tokenizer_config.json: is not a JSON object"),
        ("tokenizer_config.json", "{", "is not JSON"),
        ("tokenizer_config.json", '{"eos_token": 3}', "eos_token is 3, no token"),
        ("tokenizer_config.json", '{"chat_template": 3}', "chat_template is 3, no template"),
        ("tokenizer_config.json", '{"chat_template": ["a"]}', "no template"),
        ("tokenizer_config.json", '{"extra_special_tokens": 3}', "no list of tokens"),
        ("generation_config.json", "[" * 100_000, "is not JSON"),
        ("generation_config.json", '{"eos_token_id": "x"}', "eos_token_id is 'x', no id"),
        ("generation_config.json", '{"eos_token_id": [1.5]}', "no id and no list of ids"),
        ("special_tokens_map.json", "3", "is not a JSON object"),
        ("chat_template.jinja", b"\xff", "is not UTF-8"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_broken_file_is_named(folder, name, data, told):
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(UserError, match=told) as error:
        read(folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400 + len(str(folder))
