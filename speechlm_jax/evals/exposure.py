"""Training documents -> how often each class of facts occurs, as text and as speech."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import Any

from speechlm_jax.data.text_norm import to_words


@dataclasses.dataclass(frozen=True)
class Mention:
    """A statement of `fact` at words start .. stop-1 of a document."""

    fact: str
    start: int
    stop: int


FindFacts = Callable[[list[str]], Iterable[Mention]]


@dataclasses.dataclass
class Exposure:
    """Occurrences of the facts of a class.

    Attributes:
      facts: number of facts in the class.
      facts_as_text: number of facts stated wholly in text at least once.
      as_text, as_speech: number of statements wholly in one modality.
      across: number of statements that span a change of modality.
    """

    facts: int = 0
    facts_as_text: int = 0
    as_text: int = 0
    as_speech: int = 0
    across: int = 0


def statement_finder(statements: Mapping[str, str]) -> FindFacts:
    """Returns a function that finds statements in a document's words; keys are words, values facts.

    It finds them from left to right, the longest first, without overlap, in time linear in the
    words, however many statements there are.
    """
    known = {tuple(to_words(statement)): fact for statement, fact in statements.items()}
    lengths = sorted({len(words) for words in known}, reverse=True)

    def find(words: list[str]) -> Iterable[Mention]:
        start = 0
        while start < len(words):
            stops = (start + n for n in lengths if start + n <= len(words))
            stop = next((stop for stop in stops if tuple(words[start:stop]) in known), None)
            if stop is not None:
                yield Mention(known[tuple(words[start:stop])], start, stop)
            start = stop or start + 1

    return find


def count_exposure(
    documents: Iterable[Mapping[str, Any]], *, find: FindFacts, classes: Mapping[str, str]
) -> dict[str, Exposure]:
    """Counts the statements of every class of facts.

    Args:
      documents: rows of an interleaved folder with `segments` ({"text"} or {"codes", "text"}), or
        rows with `text` alone.
      find: returns the statements in a document's normalised words.
      classes: class of each fact; a mention of a fact without a class is a KeyError.
    """
    counts = {kind: Exposure() for kind in sorted(set(classes.values()))}
    for kind in classes.values():
        counts[kind].facts += 1
    met: set[str] = set()
    for document in documents:
        spoken, words = _spoken_words(document)
        # Number of spoken words before each position, to count those of a mention in O(1).
        before = [0, *accumulate(spoken)]
        for mention in find(words):
            exposure = counts[classes[mention.fact]]
            said = before[mention.stop] - before[mention.start]
            if said == 0:
                exposure.as_text += 1
                exposure.facts_as_text += mention.fact not in met
                met.add(mention.fact)
            elif said == mention.stop - mention.start:
                exposure.as_speech += 1
            else:
                exposure.across += 1
    return counts


def _spoken_words(document: Mapping[str, Any]) -> tuple[list[int], list[str]]:
    """Returns, for each word of a document, 1 if it is spoken and else 0; and the words."""
    spoken, words = [], []
    for segment in document.get("segments") or [document]:
        added = to_words(segment["text"])
        words += added
        spoken += [int("codes" in segment)] * len(added)
    return spoken, words
