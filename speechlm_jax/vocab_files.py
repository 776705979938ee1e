"""Writes and reads a vocabulary beside what uses it: `vocab.json` and its text vocabulary's file.

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
    """Returns the file name for the bytes of a text vocabulary."""
    return TOKENIZER_JSON if model.lstrip()[:1] == b"{" else TEXT_MODEL


def find_text(folder: str | Path) -> str:
    """Returns the name of the text vocabulary in a folder; "" if it has none."""
    names = (name for name in (TOKENIZER_JSON, TEXT_MODEL) if os.path.isfile(Path(folder) / name))
    return next(names, "")


def vocab_to_files(vocab: Vocab | None, text: bytes | None) -> dict[str, bytes]:
    """Returns the files of a vocabulary by name; leaves out a vocabulary or a text that is None."""
    files = {} if vocab is None else {VOCAB: artifacts.json_to_bytes(vocab.to_json())}
    return files if text is None else {**files, text_name(text): text}


def read_vocab(path: str | Path) -> Vocab:
    """Reads a vocab.json; raises UserError if it holds no vocabulary."""
    data = artifacts.read_json(path)
    try:
        return Vocab.from_json(data if isinstance(data, dict) else {})
    except UserError as error:
        raise UserError(f"{path}: is no vocabulary ({error})") from None


def read_text(path: str | Path, vocab: Vocab | None = None) -> TextTokenizer:
    """Reads a text vocabulary; raises UserError if `vocab` was joined from another one."""
    text = TextTokenizer.load(path)
    if vocab is not None and text.fingerprint != vocab.text_fingerprint:
        raise UserError(f"{path}: is not the text vocabulary that {VOCAB} names; copy both anew")
    return text
