"""Checks whether a document says anything, and makes a key that all its versions share."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np

from speechlm_jax.data.formats import Example, Writer

_NOT_SAID = re.compile(r"[\W_]+")
_UNSEEN = {"Zs", "Zl", "Zp", "Cc", "Cf"}  # Unicode categories of invisible characters
# Fillers of Hangul and Braille, joiners, variation selectors: invisible despite their category.
_BLANK = "\u034f\u115f\u1160\u2800\u3164\uffa0" + "".join(map(chr, range(0xFE00, 0xFE10)))

_noted: BinaryIO | None = None


@contextmanager
def noting(file: BinaryIO) -> Iterator[None]:
    """Makes `write` append keys of documents to `file` in this context: 8 bytes, big-endian."""
    global _noted
    _noted = file
    try:
        yield
    finally:
        _noted = None


def write(writer: Writer, format: str, values: Sequence[Any]) -> Example:
    """Writes a document in a format and notes its key; a document that holds nothing gets no ids.

    Args:
      writer: writer of the ids.
      format: name of a method of the writer.
      values: arguments of that method.
    """
    if not holds_something(format, values):
        return Example(np.zeros(0, np.int32), np.zeros(0, np.int32))  # the packer counts it
    key = values_to_key(format, values)
    if _noted is not None and key is not None:
        _noted.write(key.to_bytes(8, "big"))
    return getattr(writer, format)(*values)


def has_words(text: str) -> bool:
    """Returns whether a text has anything to say aloud: a letter or a digit."""
    return bool(_NOT_SAID.sub("", text).strip(_BLANK))


def is_blank(text: str) -> bool:
    """Returns whether a text has no visible character."""
    return all(unicodedata.category(letter) in _UNSEEN or letter in _BLANK for letter in text)


def said_key(text: str, *, otherwise: str) -> int:
    """Returns a 64-bit key of what a text says; `otherwise` is the key's source for a blank text.

    Case, accents, blanks and punctuation do not count: a document has one key as it is written, as
    it is normalised and as it is interleaved.
    """
    # twice: the result of casefold may decompose once more
    letters = unicodedata.normalize("NFKD", text).casefold()
    letters = _NOT_SAID.sub("", unicodedata.normalize("NFKD", letters))
    named = letters or (f"\0{otherwise}" if is_blank(text) else f"\1{''.join(text.split())}")
    digest = hashlib.blake2b(named.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def row_to_text(row: Mapping[str, Any], field: str = "text") -> str:
    """Returns the text of a row, of its segments or of its turns; "" if it has none of them."""
    if isinstance(row.get(field), str):
        return row[field]
    segments = row.get("segments")
    if isinstance(row.get("turns"), list):
        spoken = [turn.get("segments") for turn in row["turns"] if isinstance(turn, dict)]
        segments = [segment for part in spoken if isinstance(part, list) for segment in part]
    return _join(segments) if isinstance(segments, list) else ""


def _join(segments: Iterable[Any]) -> str:
    """Joins the texts of segments for a key; codes without text stand for themselves."""
    whole = [segment for segment in segments if isinstance(segment, dict)]
    if not any(isinstance(segment.get("text"), str) for segment in whole):
        return ""
    return " ".join(str(segment.get("text", segment.get("codes"))) for segment in whole)


def holds_something(format: str, values: Sequence[Any]) -> bool:
    """Returns whether `values`, from which a format is written, are worth a document.

    A text must have a visible character. Speech must have codes, and the text of a pair must also
    have words. Interleaved segments must hold codes or a visible text; in a dialogue the segments
    of every turn except the system's must.
    """
    if format == "text":
        return not is_blank(values[0])
    if format == "speech":
        return len(values[0]) > 0
    if format in ("asr", "tts", "voiced_tts"):
        return len(values[0]) > 0 and has_words(values[1])
    if format == "interleaved":
        return _segments_hold_something(values[0])
    if format == "dialogue":
        return all(
            _segments_hold_something(turn["segments"])
            for turn in values[0]
            if turn["role"] != "system"
        )
    raise ValueError(f"no format is called {format}")


def values_to_key(format: str, values: Sequence[Any]) -> int | None:
    """Returns the key of a document in a format; None without a text, as of speech alone."""
    if format == "speech":
        return None
    name = {"interleaved": "segments", "dialogue": "turns"}.get(format, "text")
    value = values[1] if format in ("asr", "tts", "voiced_tts") else values[0]
    text = row_to_text({name: value})
    return said_key(text, otherwise=json.dumps(value)) if text else None


def _segments_hold_something(segments: Iterable[Mapping[str, Any]]) -> bool:
    return any(
        len(segment["codes"]) > 0 if "codes" in segment else not is_blank(segment["text"])
        for segment in segments
    )
