"""A mixture's text vocabulary lies beside its file, under its own name, and no other is taken."""

import shutil

import pytest

from speechlm_jax.codes import CodesIdentity
from speechlm_jax.data.mixture import PreparedMixture, read_mixture, read_text, write_mixture
from speechlm_jax.text import TextTokenizer, make_vocab

TEXT, OTHER = (TextTokenizer.train([line], kind="word") for line in ("a red cat", "b c"))
CODES = CodesIdentity("tokenizer-a", 12.5, 16)


def mixture(name, vocab):
    return PreparedMixture(name, 16, vocab.fingerprint, ())


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
