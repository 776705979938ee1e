"""Text <-> text ids, by a SentencePiece model that a corpus trains or a user brings."""

import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import sentencepiece

from speechlm_jax import artifacts
from speechlm_jax.errors import UserError


class TextTokenizer:
    """A SentencePiece model: words or pieces to ids 0 .. size-1 and back."""

    def __init__(self, model: bytes):
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

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
        """Reads a SentencePiece model file; UserError if it is none."""
        try:
            return cls(Path(path).read_bytes())
        except FileNotFoundError:
            raise UserError(f"{path}: no such text vocabulary") from None
        except RuntimeError:
            raise UserError(f"{path}: is not a SentencePiece model") from None

    def save(self, path: str | Path) -> None:
        """Writes the model file."""
        artifacts.write_bytes(path, self.model)

    @property
    def size(self) -> int:
        """Number of text ids."""
        return self._processor.GetPieceSize()

    @property
    def fingerprint(self) -> str:
        """Identity of the vocabulary."""
        return hashlib.sha256(self.model).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Text to ids. Encoding word by word gives the same ids as the whole."""
        return self._processor.EncodeAsIds(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text."""
        return self._processor.DecodeIds([int(i) for i in ids])
