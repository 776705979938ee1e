"""A vocabulary's files: what is written is found and read, whichever kind its text side is."""

import pytest

from speechlm_jax import artifacts
from speechlm_jax.codes import CodesIdentity
from speechlm_jax.errors import UserError
from speechlm_jax.text import TextTokenizer, make_vocab
from speechlm_jax.vocab_files import (
    VOCAB,
    find_text,
    read_text,
    read_vocab,
    text_name,
    vocab_to_files,
)

TEXT = TextTokenizer.train(["it is the cat"], kind="word")
VOICED = make_vocab(TEXT, CodesIdentity("t", 12.5, 16), voices=("Ann",))


def test_what_is_written_is_found_and_read(tmp_path):
    assert find_text(tmp_path) == ""
    for name, data in vocab_to_files(VOICED, TEXT.model).items():
        artifacts.write_bytes(tmp_path / name, data)
    assert read_vocab(tmp_path / VOCAB) == VOICED
    assert read_text(tmp_path / find_text(tmp_path), VOICED).model == TEXT.model
    with pytest.raises(UserError, match="copy both anew"):
        read_text(tmp_path / "text.model", make_vocab(TextTokenizer.train(["b"]), VOICED.codes))


def test_there_may_be_one_of_the_two():
    assert vocab_to_files(None, None) == {}
    assert list(vocab_to_files(None, TEXT.model)) == ["text.model"]
    assert list(vocab_to_files(VOICED, None)) == [VOCAB]


def test_the_name_tells_the_kind():
    assert text_name(TEXT.model) == "text.model" and text_name(b' {"model": 1}') == "tokenizer.json"


@pytest.mark.parametrize("data", [[], {}, {"text_size": -1}, 3])
def test_what_is_no_vocabulary_is_named(tmp_path, data):
    artifacts.write_json(tmp_path / VOCAB, data)
    with pytest.raises(UserError, match="vocab.json: is no vocabulary"):
        read_vocab(tmp_path / VOCAB)
