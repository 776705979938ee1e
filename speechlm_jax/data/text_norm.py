"""Normalises text to the words that are said: for training texts, WERs and answers alike.

Lower case, NFKC, no punctuation; an apostrophe inside a word stays ("don't"). Whisper's English
normaliser was considered and rejected: it drops fillers, rewrites numbers and spellings of English
alone, and needs four packages. Its figures are not comparable with these on numbers or
contractions.
"""

import re
import unicodedata

_OUTSIDE_WORDS = re.compile(r"[^\w\s']|_")
_LOOSE_APOSTROPHE = re.compile(r"(?<!\w)'+|'+(?!\w)")

# Marks that split a word and are not read: an apostrophe, dashes and the like, an ellipsis.
_JOINTS = re.compile("['\N{RIGHT SINGLE QUOTATION MARK}]|[-\u2010-\u2015\u2026,;:!?]+|\\.{2,}")
_INITIALS = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")  # "U.S", "e.g"
_READ_ALOUD = frozenset("%\N{PER MILLE SIGN}&@#/\\\N{SECTION SIGN}")  # punctuation in Unicode
_OPENING = re.compile("[\\[({'\"\N{LEFT SINGLE QUOTATION MARK}\N{LEFT DOUBLE QUOTATION MARK}]*")
_LONGEST = 50  # letters; anything longer is no word, or a sentence without blanks


def normalize(text: str) -> str:
    """Returns the words in lower case, separated by single blanks; "" if nothing is said."""
    text = (
        unicodedata.normalize("NFKC", text)
        .casefold()
        .replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    )
    text = _LOOSE_APOSTROPHE.sub(" ", _OUTSIDE_WORDS.sub(_mark_or_blank, text))
    return " ".join(text.split())


def to_words(text: str) -> list[str]:
    """Returns the normalised words of a text."""
    return normalize(text).split()


def word_to_said(word: str) -> str | None:
    """Returns what is said for a word of a text (a run without white space): its normal form.

    Returns "" for punctuation alone, and None for a word that is read differently from its normal
    form: signs ("&", "50%"), numbers with a mark ("$5.50", "1,000", "-3"), addresses, "km/h".
    """
    first, last = 0, len(word)
    while first < last and _is_silent(word[first]):
        first += 1
    while first < last and _is_silent(word[last - 1]):
        last -= 1
    core = word[first:last]
    if not core or len(core) > _LONGEST:
        return None if core else ""
    pieces = _JOINTS.split(core)
    if any(letter.isnumeric() for letter in core) and (
        len(pieces) > 1 or not _OPENING.fullmatch(word[:first])
    ):
        return None
    if not _INITIALS.fullmatch(core) and not all(map(_is_plain, "".join(pieces))):
        return None
    said = normalize(core)
    return said if any(map(str.isalnum, said)) else None


def _is_silent(letter: str) -> bool:
    category = unicodedata.category(letter)
    return (category[0] == "P" or category in ("Cf", "Cc")) and letter not in _READ_ALOUD


def _is_plain(letter: str) -> bool:
    category = unicodedata.category(letter)
    return category[0] in "LM" or category == "Nd"


def _mark_or_blank(found: re.Match[str]) -> str:
    """Keeps a combining mark (vowels in many scripts) in its word; replaces all else by a blank."""
    return found[0] if unicodedata.category(found[0])[0] == "M" else " "
