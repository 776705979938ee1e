"""A mixture's text vocabulary lies beside its file, under its own name, and no other is taken."""

import json
import shutil

import pytest

from speechlm_jax import artifacts
from speechlm_jax.codes import CodesIdentity
from speechlm_jax.data.mixture import (
    PreparedMixture,
    PreparedTask,
    read_mixture,
    read_text,
    write_mixture,
)
from speechlm_jax.errors import UserError
from speechlm_jax.text import TextTokenizer, make_vocab

TEXT, OTHER = (TextTokenizer.train([line], kind="word") for line in ("a red cat", "b c"))
CODES = CodesIdentity("tokenizer-a", 12.5, 16)


def mixture(name, vocab):
    return PreparedMixture(name, 16, vocab.fingerprint, ())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tasks": [("a", 1.0), ("b", 1.0), ("a", 2.0)]}, "tasks: 'a' stands there more than once"),
        ({"tasks": [("a", -1.0)]}, "rate: -1"),
        ({"tasks": [("a", float("nan"))]}, "rate: nan"),
        ({"length": 0}, "length: 0; give 1 or more"),
    ],
)
def test_what_no_mixture_can_be_is_refused_by_name(tmp_path, change, words):
    made = write_mixture(tmp_path, PreparedMixture("a", 16, "v", (PreparedTask("a", 1.0, {}),)))
    data = artifacts.read_json(made)
    (task,) = data["tasks"]
    given = {**data, **change}
    if "tasks" in change:
        given["tasks"] = [{**task, "name": name, "rate": rate} for name, rate in change["tasks"]]
    made.write_text(json.dumps(given))
    with pytest.raises(UserError, match="is not a prepared mixture") as error:
        read_mixture(made)
    assert words in str(error.value) and str(made) in str(error.value)


def test_mixtures_of_two_vocabularies_share_a_folder_and_keep_both(tmp_path):
    for name, text in (("one", TEXT), ("two", OTHER)):
        vocab = make_vocab(text, CODES)
        write_mixture(tmp_path, mixture(name, vocab), text)
    for name, text in (("one", TEXT), ("two", OTHER)):
        path = tmp_path / f"{name}.mixture.json"
        assert read_mixture(path).name == name
        # with and without voices: they have the same text side
        for voices in ((), ("Ann",)):
            assert read_text(path, make_vocab(text, CODES, voices=voices)) == text.model


def test_the_mixtures_file_is_as_it_was_before_it_was_kept(tmp_path):
    made = mixture("one", make_vocab(TEXT, CODES))
    path = write_mixture(tmp_path, made)
    before = path.read_bytes()
    assert read_text(path, make_vocab(TEXT, CODES)) is None
    assert write_mixture(tmp_path, made, TEXT).read_bytes() == before


@pytest.mark.parametrize(
    "fingerprint", ["0123456789abcdef", "/../../secret", "x" * 5000, "a\0", ""]
)
def test_what_is_not_there_or_another_file_is_not_read(tmp_path, fingerprint):
    vocab = make_vocab(TEXT, CODES)
    path = write_mixture(tmp_path / "rows", mixture("one", vocab), TEXT)
    (tmp_path / "rows/text-").mkdir()
    (tmp_path / "secret.vocab").write_text("secret")
    shutil.copy(tmp_path / "secret.vocab", tmp_path / "rows/text-0123456789abcdef.vocab")
    other = type(vocab)(vocab.text_size, 16, 12.5, fingerprint, "tokenizer-a")
    assert read_text(path, other) is None


def test_rows_in_a_bucket_have_it_too(tmp_path):
    vocab = make_vocab(TEXT, CODES)
    path = write_mixture(tmp_path, mixture("one", vocab), TEXT)
    assert read_text(f"local://{path}", vocab) == TEXT.model
    assert read_text(f"local://{path}", make_vocab(OTHER, CODES)) is None
