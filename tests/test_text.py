"""Text <-> ids: inverse, the same by words as whole, and trained the same in any order."""

import pytest

from speechlm_jax.errors import UserError
from speechlm_jax.text import TextTokenizer

LINES = [
    "tom lives in paris and has a cat",
    "anna lives in rome and likes bread",
    "the cat of anna is green",
    "where does tom live",
]
KINDS = pytest.mark.parametrize("kind", ["word", "bpe"])


def _train(kind: str, lines: list[str] = LINES) -> TextTokenizer:
    return TextTokenizer.train(lines, kind=kind, size=300)


@KINDS
def test_ids_and_text_are_inverse(kind):
    tokenizer = _train(kind)
    for line in LINES:
        ids = tokenizer.encode(line)
        assert tokenizer.decode(ids) == line
        assert all(0 <= id_ < tokenizer.size for id_ in ids)
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""


@KINDS
def test_encoding_word_by_word_gives_the_ids_of_the_whole(kind):
    tokenizer = _train(kind)
    for line in LINES:
        assert sum(map(tokenizer.encode, line.split()), []) == tokenizer.encode(line)


def test_a_word_vocabulary_has_one_id_a_word_and_one_for_the_rest():
    tokenizer = _train("word")
    words = {word for line in LINES for word in line.split()}
    assert tokenizer.size == len(words) + 1
    assert sorted(tokenizer.encode(word) for word in words) == [[i + 1] for i in range(len(words))]
    assert tokenizer.encode("zebra") == [0]


def test_pieces_fall_back_to_bytes():
    tokenizer = _train("bpe")
    for text in ("zebra", "Äpfel", "日本 quiz"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@KINDS
def test_the_order_and_repetition_of_lines_do_not_matter(kind):
    assert _train(kind, LINES[::-1] + LINES).fingerprint == _train(kind).fingerprint
    assert _train(kind, LINES[:3]).fingerprint != _train(kind).fingerprint


def test_a_model_file_comes_back(tmp_path):
    tokenizer = _train("word")
    tokenizer.save(tmp_path / "text.model")
    again = TextTokenizer.load(tmp_path / "text.model")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode(LINES[0]) == tokenizer.encode(LINES[0])


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(UserError, match="absent.model: no such text vocabulary"):
        TextTokenizer.load(tmp_path / "absent.model")
    (tmp_path / "text.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="text.model: is no SentencePiece model or tokenizer.json"):
        TextTokenizer.load(tmp_path / "text.model")
    with pytest.raises(UserError, match="no words"):
        TextTokenizer.train(["", "  "])
