"""Text <-> text ids, by a vocabulary that a corpus trains or a user brings.

A vocabulary is one file: a SentencePiece model, or the `tokenizer.json` of a Hugging Face model.
"""

import hashlib
import importlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import sentencepiece

from speechlm_jax import artifacts
from speechlm_jax.errors import UserError


class _SentencePiece:
    """A SentencePiece model; a space is part of the piece that it precedes, the first one too."""

    def __init__(self, model: bytes):
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.size: int = self._processor.GetPieceSize()

    def encode(self, text: str, continues: bool) -> list[int]:
        return self._processor.EncodeAsIds(text)

    def decode(self, ids: list[int]) -> str:
        return self._processor.DecodeIds(ids)


class _HuggingFace:
    """A tokenizer.json; no special is added, and none is read from the text of a document."""

    def __init__(self, model: bytes):
        try:
            tokenizers = importlib.import_module("tokenizers")
        except ImportError:
            raise UserError(
                "tokenizer.json: `tokenizers` is not installed; `pip install 'speechlm_jax[hf]'`"
            ) from None
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(model.decode())
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(str(error)) from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        self.size: int = 1 + max(ids)

    def encode(self, text: str, continues: bool) -> list[int]:
        spaced = f" {text}" if continues and text else text
        return self._tokenizer.encode(spaced, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False).strip()


class TextTokenizer:
    """A text vocabulary: words or pieces to ids 0 .. size-1 and back."""

    def __init__(self, model: bytes):
        """`model`: the bytes of a SentencePiece model or of a tokenizer.json."""
        self.model = model
        self.is_json = model.lstrip()[:1] == b"{"  # a tokenizer.json
        self._pieces = _HuggingFace(model) if self.is_json else _SentencePiece(model)

    @classmethod
    def train(
        cls, lines: Iterable[str], *, kind: Literal["word", "bpe"] = "bpe", size: int = 1000
    ) -> "TextTokenizer":
        """Learns a vocabulary of at most `size` entries from lines of text.

        `word` keeps whole words (a closed world); `bpe` learns pieces, with bytes for the rest.
        """
        model = io.BytesIO()
        lines = sorted(set(line for line in lines if line.strip()))
        if not lines:
            raise UserError("the text holds no words to learn a vocabulary from")
        if kind == "word":
            size = len({word for line in lines for word in line.split()}) + 1
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type=kind,
            vocab_size=size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            byte_fallback=kind == "bpe",
            normalization_rule_name="identity",
            bos_id=-1,
            eos_id=-1,
            unk_id=0,
            num_threads=1,
            minloglevel=2,
        )
        return cls(model.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> "TextTokenizer":
        """Reads a SentencePiece model or a tokenizer.json; UserError if it is neither."""
        try:
            return cls(Path(path).read_bytes())
        except FileNotFoundError:
            raise UserError(f"{path}: no such text vocabulary") from None
        except (RuntimeError, ValueError):
            raise UserError(f"{path}: is no SentencePiece model or tokenizer.json") from None

    def save(self, path: str | Path) -> None:
        """Writes the model file."""
        artifacts.write_bytes(path, self.model)

    @property
    def size(self) -> int:
        """Number of text ids."""
        return self._pieces.size

    @property
    def fingerprint(self) -> str:
        """Identity of the vocabulary."""
        return hashlib.sha256(self.model).hexdigest()[:16]

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Text to ids. Encoding word by word gives the same ids as the whole.

        Args:
          continues: whether something stands before the text in its document, so that a space
            does too.
        """
        return self._pieces.encode(text, continues)

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text."""
        return self._pieces.decode([int(i) for i in ids])
