"""Converts text to text ids and back, by a vocabulary that a corpus trains or a user brings.

A vocabulary is one file: a SentencePiece model, or the `tokenizer.json` of a Hugging Face model.
"""

import hashlib
import importlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from speechlm_jax import artifacts
from speechlm_jax.codes import CodesIdentity
from speechlm_jax.errors import UserError
from speechlm_jax.vocab import Vocab

_MARK = "\N{LOWER ONE EIGHTH BLOCK}"
# Letters of each UTF-8 length and of many scripts: a tokenizer that writes all of them has bytes.
_PROBE = [chr(code) for code in (*range(33, 127), 0xE9, 0x416, 0x5D0, 0x915, 0x6F22, 0x1F600)]


_NOT_OF_RUST = (KeyboardInterrupt, SystemExit, MemoryError)


class _SentencePiece:
    """A SentencePiece model; a space is part of the piece that it precedes, the first one too."""

    left_out = 0  # an unknown word has an id

    def __init__(self, model: bytes, reserved: frozenset[int]):
        self._decoder = sentencepiece.SentencePieceProcessor(model_proto=model)
        messages: Any = sentencepiece_model_pb2  # generated on import, so without types
        proto = messages.ModelProto.FromString(model)
        self.size: int = self._decoder.GetPieceSize()
        if not self.size:
            raise ValueError("a model without pieces")
        self.unknown_id: int = self._decoder.unk_id()
        rules = proto.normalizer_spec
        is_exact = proto.trainer_spec.byte_fallback and not (
            rules.add_dummy_prefix or rules.remove_extra_whitespaces or rules.precompiled_charsmap
        )
        # "\u2581" means a blank in pieces, so the character itself is written in bytes.
        self._mark = [self._decoder.PieceToId(f"<0x{byte:02X}>") for byte in _MARK.encode()]
        self._split = re.compile(f"({_MARK})" if is_exact else r"(?!)").split
        for id_ in reserved:
            piece = proto.pieces[id_]
            if piece.type in (piece.BYTE, piece.UNKNOWN):
                raise UserError(
                    f"text vocabulary: id {id_} ({piece.piece}) cannot be a special's; any text "
                    "may need it"
                )
            # No escaped text holds a blank; the text of an unused piece is written in smaller ones.
            piece.piece, piece.type = f" {id_}", piece.UNUSED
        self._encoder = (
            sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
            if reserved
            else self._decoder
        )

    def encode(self, text: str, continues: bool) -> list[int]:
        ids: list[int] = []
        for part in self._split(text):
            ids += self._mark if part == _MARK else self._encoder.EncodeAsIds(part)
        return ids

    def decode(self, ids: list[int]) -> str:
        return self._decoder.DecodeIds(ids)


class _HuggingFace:
    """A tokenizer.json; adds no special, and reads none from the text of a document."""

    def __init__(self, model: bytes, reserved: frozenset[int]):
        try:
            tokenizers = importlib.import_module("tokenizers")
        except ImportError:
            raise UserError(
                "tokenizer.json: `tokenizers` is not installed; `pip install -e '.[hf]'`"
            ) from None

        def read(text: str) -> Any:
            try:
                found = tokenizers.Tokenizer.from_str(text)
            except _NOT_OF_RUST:
                raise
            except BaseException as error:  # nothing narrower; a panic of Rust is no Exception
                raise ValueError(str(error)) from None
            found.no_padding()
            found.no_truncation()
            found.encode_special_tokens = True
            return found

        self._decoder = self._encoder = read(model.decode())
        data = json.loads(model)
        self.size: int = 1 + max(self._decoder.get_vocab(with_added_tokens=True).values())
        self.unknown_id = _unknown_id(data["model"])
        self.left_out = 0
        if self.unknown_id in reserved:
            raise UserError(
                f"text vocabulary: id {self.unknown_id} cannot be a special's; it is the unknown's"
            )
        if reserved:
            self._encoder = read(json.dumps(_without_tokens(data, reserved)))
        self._reserved = reserved
        self._is_lost: dict[str, bool] = {}  # by letter
        lost = [letter for letter in _PROBE if self._lost(letter)]
        for letter in lost:
            if ids := self._decoder.encode(letter, add_special_tokens=False).ids:
                raise UserError(
                    f"text vocabulary: id {ids[0]} cannot be a special's; '{letter}' needs it"
                )
        self._leaves_out = self.unknown_id is None and bool(lost)

    def encode(self, text: str, continues: bool) -> list[int]:
        spaced = f" {text}" if continues and text else text
        ids = self._ids(spaced)
        if not self._reserved.isdisjoint(ids):
            raise UserError("text vocabulary: writes the id of a special for a text; remove the id")
        if self._leaves_out:
            self.left_out += sum(text.count(letter) for letter in {*text} if self._lost(letter))
        return ids

    def _lost(self, letter: str) -> bool:
        """Returns whether nothing is written for a letter, other than a blank that parts words."""
        if letter not in self._is_lost:
            self._is_lost[letter] = not (self._ids(letter) or letter.isspace())
        return self._is_lost[letter]

    def _ids(self, text: str) -> list[int]:
        try:
            return self._encoder.encode(text, add_special_tokens=False).ids
        except _NOT_OF_RUST:
            raise
        except BaseException as error:  # e.g. the token for unknown words is not there
            raise UserError(f"text vocabulary: cannot write {text[:20]!r} ({error})") from None

    def decode(self, ids: list[int]) -> str:
        return self._decoder.decode(ids, skip_special_tokens=False).strip()


Kind = Literal["word", "bpe", "exact"]


class TextTokenizer:
    """A text vocabulary: words or pieces to ids 0 .. size-1 and back."""

    def __init__(self, model: bytes, *, reserved: frozenset[int] = frozenset()):
        """`model` is the bytes of a SentencePiece model or of a tokenizer.json; see `for_vocab`."""
        self.model = model
        self.is_json = model.lstrip()[:1] == b"{"  # a tokenizer.json
        self._reserved = reserved
        kind = _HuggingFace if self.is_json else _SentencePiece
        self._pieces = kind(model, reserved)

    @classmethod
    def train(
        cls, lines: Iterable[str], *, kind: Kind = "bpe", size: int = 1000
    ) -> "TextTokenizer":
        """Learns a vocabulary of at most `size` entries from lines of text.

        `word` keeps whole words (a closed world) and ignores `size`; `bpe` learns pieces, with
        bytes for the rest, of words that single blanks separate; `exact` keeps the blanks too, so
        that any text is restored.

        Raises:
          UserError: the lines hold no words, or more characters than `size` has room for.
        """
        model = io.BytesIO()
        lines = sorted(set(line for line in lines if line.strip()))
        if not lines:
            raise UserError("the text holds no words to learn a vocabulary from")
        if kind == "word":
            size = len({word for line in lines for word in line.split()}) + 1
        as_it_is: dict[str, Any] = {"add_dummy_prefix": False, "remove_extra_whitespaces": False}
        try:
            sentencepiece.SentencePieceTrainer.Train(
                sentence_iterator=iter(lines),
                model_writer=model,
                model_type="word" if kind == "word" else "bpe",
                vocab_size=size,
                hard_vocab_limit=False,
                character_coverage=0.9995 if kind == "exact" else 1.0,
                byte_fallback=kind != "word",
                normalization_rule_name="identity",
                bos_id=-1,
                eos_id=-1,
                unk_id=0,
                num_threads=1,
                minloglevel=2,
                **(as_it_is if kind == "exact" else {}),
            )
        except RuntimeError as error:
            needed = re.search(r"required_chars. \d+ vs (\d+)", str(error))
            if needed is None:
                raise
            raise UserError(
                f"text vocabulary: {size} entries are too few for this text; give at least "
                f"{needed[1]}"
            ) from None
        return cls(model.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> "TextTokenizer":
        """Reads a SentencePiece model or a tokenizer.json; raises UserError if it is neither."""
        try:
            return cls(Path(path).read_bytes())
        except FileNotFoundError:
            raise UserError(f"{path}: no such text vocabulary") from None
        except (RuntimeError, ValueError):
            raise UserError(f"{path}: is no SentencePiece model or tokenizer.json") from None

    def save(self, path: str | Path) -> None:
        """Writes the model file."""
        artifacts.write_bytes(path, self.model)

    def for_vocab(self, vocab: Vocab) -> "TextTokenizer":
        """Returns a tokenizer with the same ids, except those that `vocab` gives another meaning.

        A text that holds the name of a special, of a voice or of a code is written in other ids.

        Raises:
          UserError: a special is mapped to an id that other text needs.
        """
        mapped = {id_ for _, id_ in vocab.mapped if id_ < self.size}
        reserved = frozenset(mapped | {*range(vocab.text_size, self.size)})
        return self if reserved == self._reserved else _reserve(self.model, reserved)

    @property
    def size(self) -> int:
        """Number of text ids."""
        return self._pieces.size

    @property
    def fingerprint(self) -> str:
        """Identity of the vocabulary."""
        return model_fingerprint(self.model)

    @property
    def unknown_id(self) -> int | None:
        """Id of a word (or letter) that the vocabulary lacks; None if nothing is written for it."""
        return self._pieces.unknown_id

    @property
    def left_out(self) -> int:
        """Number of letters that `encode` has left out so far, for lack of an unknown id."""
        return self._pieces.left_out

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Turns text into ids. Encoding word by word gives the same ids as the whole.

        Args:
          text: text without lone surrogates.
          continues: true if something precedes the text in its document, so that a space does too.

        Raises:
          UserError: the text holds half of a surrogate pair, which is no character.
        """
        if not is_unicode(text):
            raise UserError(f"text {text[:40]!r}: holds a lone surrogate; remove it")
        return self._pieces.encode(text, continues)

    def decode(self, ids: Sequence[int]) -> str:
        """Turns ids into text."""
        return self._pieces.decode([int(i) for i in ids])


def model_fingerprint(model: bytes) -> str:
    """Returns the identity of a text vocabulary: a hash of the bytes of its file."""
    return hashlib.sha256(model).hexdigest()[:16]


def make_vocab(text: TextTokenizer, codes: CodesIdentity, *, voices: Sequence[str] = ()) -> Vocab:
    """Returns the vocabulary that joins a text vocabulary and codes, with an id for each voice."""
    return Vocab(
        text_size=text.size,
        codebook_size=codes.codebook_size,
        frame_rate_hz=codes.frame_rate_hz,
        text_fingerprint=text.fingerprint,
        tokenizer_fingerprint=codes.tokenizer,
        voices=tuple(voices),
    )


def is_unicode(text: str) -> bool:
    """Returns whether a text can be written in UTF-8: JSON may hold halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@lru_cache(maxsize=4)
def _reserve(model: bytes, reserved: frozenset[int]) -> TextTokenizer:
    return TextTokenizer(model, reserved=reserved)


def _unknown_id(model: dict[str, Any]) -> int | None:
    """Returns the id of the unknown token of a tokenizer.json's model; None if it has none."""
    if model.get("unk_id") is not None:
        return model["unk_id"]
    token = model.get("unk_token")
    return model["vocab"].get(token) if token is not None else None


def _without_tokens(data: dict[str, Any], reserved: frozenset[int]) -> dict[str, Any]:
    """Returns a tokenizer.json that writes no reserved id, and all others as before.

    Tokens are renamed, not removed, as their number must not change: added tokens are numbered in
    order.
    """
    model = data["model"]
    added = [
        {**token, "content": _unsaid(token["id"]), "special": True}
        if token["id"] in reserved
        else token
        for token in data.get("added_tokens") or ()
    ]
    if isinstance(model["vocab"], list):  # Unigram: a piece and its score
        pieces = enumerate(model["vocab"])
        changed = [[_unsaid(i), pair[1]] if i in reserved else pair for i, pair in pieces]
        return {**data, "added_tokens": added, "model": {**model, "vocab": changed}}
    gone = {piece for piece, id_ in model["vocab"].items() if id_ in reserved}
    renamed = {_unsaid(i) if i in reserved else piece: i for piece, i in model["vocab"].items()}
    model = {**model, "vocab": renamed}
    if gone and "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        model["merges"] = [
            [left, right]
            for left, right in pairs
            if gone.isdisjoint((left, right, left + right.removeprefix(prefix)))
        ]
    return {**data, "added_tokens": added, "model": model}


def _unsaid(id_: int) -> str:
    return f"\0 reserved {id_}"
