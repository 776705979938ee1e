"""Text -> the words that are compared: the one normaliser of every WER and every answer.

Lower case, NFKC, no punctuation; an apostrophe inside a word stays ("don't"). Whisper's English
normaliser was weighed and left out: it drops fillers, rewrites numbers and spellings of English
alone, and brings four packages. Figures from it are not comparable with these on numbers or
contractions.
"""

import re
import unicodedata

_OUTSIDE_WORDS = re.compile(r"[^\w']|_")
_LOOSE_APOSTROPHE = re.compile(r"(?<!\w)'+|'+(?!\w)")


def normalize(text: str) -> str:
    """Words in lower case, parted by single blanks; "" where nothing is said."""
    text = (
        unicodedata.normalize("NFKC", text)
        .casefold()
        .replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    )
    text = _LOOSE_APOSTROPHE.sub(" ", _OUTSIDE_WORDS.sub(" ", text))
    return " ".join(text.split())


def to_words(text: str) -> list[str]:
    """The normalised words of a text."""
    return normalize(text).split()
