"""A vocabulary beside what was made with it: `vocab.json` and the file of its text vocabulary.

`speechlm vocab`, `speechlm convert` and every training write them, under the same names.
"""

import os
from pathlib import Path

from speechlm_jax import artifacts
from speechlm_jax.errors import UserError
from speechlm_jax.text import TextTokenizer
from speechlm_jax.vocab import Vocab

VOCAB = "vocab.json"
TOKENIZER_JSON, TEXT_MODEL = "tokenizer.json", "text.model"  # of Hugging Face, of SentencePiece


def text_name(model: bytes) -> str:
    """The name under which the bytes of a text vocabulary are written."""
    return TOKENIZER_JSON if model.lstrip()[:1] == b"{" else TEXT_MODEL


def find_text(folder: str | Path) -> str:
    """The name of the text vocabulary in a folder; "" where it has none."""
    names = (name for name in (TOKENIZER_JSON, TEXT_MODEL) if os.path.isfile(Path(folder) / name))
    return next(names, "")


def vocab_to_files(vocab: Vocab | None, text: bytes | None) -> dict[str, bytes]:
    """The files of a vocabulary by name, as far as there are a vocabulary and a text vocabulary."""
    files = {} if vocab is None else {VOCAB: artifacts.json_to_bytes(vocab.to_json())}
    return files if text is None else {**files, text_name(text): text}


def read_vocab(path: str | Path) -> Vocab:
    """Reads a vocab.json; UserError if it holds no vocabulary."""
    data = artifacts.read_json(path)
    try:
        return Vocab.from_json(data if isinstance(data, dict) else {})
    except UserError as error:
        raise UserError(f"{path}: is no vocabulary ({error})") from None


def read_text(path: str | Path, vocab: Vocab | None = None) -> TextTokenizer:
    """Reads a text vocabulary; UserError if it is not the one that `vocab` was joined from."""
    text = TextTokenizer.load(path)
    if vocab is not None and text.fingerprint != vocab.text_fingerprint:
        raise UserError(f"{path}: is not the text vocabulary that {VOCAB} names; copy both anew")
    return text
