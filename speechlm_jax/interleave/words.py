"""Splits verbatim texts into words (ranges of characters), and draws spans of words to say."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from speechlm_jax.arrays import Int, UInt, ndarray
from speechlm_jax.interleave.spans import ragged, sample_spans

# A word of a text -> what is said for it; "" if nothing is said, None if it cannot be said.
Say = Callable[[str], str | None]
_IS_BLANK = np.array([chr(code).isspace() for code in range(0x3002)])  # no later character is blank


@dataclasses.dataclass(frozen=True)
class Plan:
    """The spans of a document that are to be spoken, in columns, because there are many.

    Attributes:
      start, stop: characters start .. stop-1 of each span, in order.
      said: words said for each span.
      num_words: number of words said for each span.
      words: words of the document; those for which nothing is said are not counted.
      unsayable_words: those of them that cannot be said.
    """

    start: list[int]
    stop: list[int]
    said: list[str]
    num_words: list[int]
    words: int
    unsayable_words: int


class Lexicon(dict[str, int]):
    """Words met so far, with the number of what is said for each, `UNSAYABLE` or `SILENT`."""

    UNSAYABLE, SILENT = -1, -2
    LARGEST = 1 << 18  # words; a few tens of megabytes
    LONGEST = 64  # letters of a word that is kept; longer ones rarely recur

    def __init__(self, say: Say):
        super().__init__()
        self._say = say
        self.said: list[str] = []

    def __missing__(self, word: str) -> int:
        said = self._say(word)
        number = len(self.said) if said else self.SILENT if said == "" else self.UNSAYABLE
        if said:
            self.said.append(said)
        if len(word) <= self.LONGEST:
            self[word] = number
        return number

    def number(self, words: Sequence[str]) -> Int[ndarray, " words"]:
        """Returns the number of each word; numbers of earlier calls may become invalid."""
        if len(self) > self.LARGEST:
            self.clear()
            self.said.clear()
        return np.fromiter(map(self.__getitem__, words), np.int64, len(words))


def choose_spans(
    texts: Sequence[str],
    lexicon: Lexicon,
    *,
    span_corruption_ratio: float,
    mean_span_length: float,
    keys: UInt[ndarray, "documents keys"],
) -> list[Plan]:
    """Draws spans of each text from the words that can be said (`spans.sample_spans`).

    A span that would hold a word which cannot be said becomes two, on both sides of it, so that the
    ratio is that of the words that can be said. A word for which nothing is said is not counted; it
    is part of a span only between two that are said. Time is linear in the texts' characters.

    Args:
      texts: documents without lone surrogates.
      lexicon: spoken forms of the words.
      span_corruption_ratio: fraction of the words that can be said.
      mean_span_length: mean length in words that can be said.
      keys: keys of each text, as in `sample_spans`.
    """
    words = _read_words(texts)
    numbers = lexicon.number(words.words)
    sayable = np.flatnonzero(numbers >= 0)
    is_unsayable = numbers == Lexicon.UNSAYABLE
    counts = np.bincount(words.document[sayable], minlength=len(texts))
    unsayable = np.bincount(words.document[is_unsayable], minlength=len(texts))
    spans = sample_spans(
        counts,
        span_corruption_ratio=span_corruption_ratio,
        mean_span_length=mean_span_length,
        keys=keys,
    )
    owner, number = ragged(spans.stop - spans.start)
    before = np.cumsum(counts) - counts
    spoken = sayable[(before[spans.document] + spans.start)[owner] + number]
    walls = np.cumsum(is_unsayable)[spoken]  # unsayable words part a span
    begins = np.flatnonzero((np.diff(owner, prepend=-1) != 0) | (np.diff(walls, prepend=-1) != 0))
    lengths = np.diff(begins, append=len(spoken))
    first, last = spoken[begins], spoken[begins + lengths - 1]
    words_said = [lexicon.said[number] for number in numbers[spoken].tolist()]
    ends = zip(begins.tolist(), (begins + lengths).tolist(), strict=True)
    said = [" ".join(words_said[begin:end]) for begin, end in ends]
    start, stop = words.start[first].tolist(), words.stop[last].tolist()
    num_words = lengths.tolist()
    edges = np.searchsorted(words.document[first], np.arange(len(texts) + 1)).tolist()
    totals = zip((counts + unsayable).tolist(), unsayable.tolist(), strict=True)
    return [
        Plan(start[a:b], stop[a:b], said[a:b], num_words[a:b], *its_words)
        for (a, b), its_words in zip(itertools.pairwise(edges), totals, strict=True)
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class _Words:
    """The words of several texts: runs of characters other than white space.

    Attributes:
      words: the words themselves.
      document: number of each word's text.
      start, stop: characters start .. stop-1 of each word in its text.
    """

    words: list[str]
    document: Int[ndarray, " words"]
    start: Int[ndarray, " words"]
    stop: Int[ndarray, " words"]


def _read_words(texts: Sequence[str]) -> _Words:
    joined = "\n".join(texts)
    letters = np.frombuffer(joined.encode("utf-32-le"), np.uint32)
    is_blank = _IS_BLANK.take(letters, mode="clip")
    edges = np.flatnonzero(np.diff(is_blank, prepend=True, append=True))
    start, stop = edges[::2], edges[1::2]
    first = np.cumsum([0, *(len(text) + 1 for text in texts)])
    document = np.searchsorted(first, start, side="right") - 1
    return _Words(joined.split(), document, start - first[document], stop - first[document])
