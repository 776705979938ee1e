"""Spans of verbatim texts: of words that can be said alone, and never across one that cannot."""

import re

import numpy as np
import pytest

from speechlm_jax.interleave.spans import NUM_KEYS
from speechlm_jax.interleave.words import Lexicon, choose_spans


def say(word):
    """Lower case; dots are silent, and numbers cannot be said."""
    return None if word.isdecimal() else word.strip(".,-").lower()


def plan(texts, *, ratio=0.3, mean=10.0, seed=0):
    keys = np.random.default_rng(seed).integers(2**64, size=(len(texts), NUM_KEYS), dtype=np.uint64)
    lexicon = Lexicon(say)
    return choose_spans(
        texts, lexicon, span_corruption_ratio=ratio, mean_span_length=mean, keys=keys
    )


def make_texts(count, length, *, unsayable=0.1, silent=0.1):
    rng = np.random.default_rng(0)
    kinds = rng.choice(3, (count, length), p=[1 - unsayable - silent, unsayable, silent])
    words = [["Word,", "17", "..."][kind] for kind in range(3)]
    blanks = [" ", "\n\n", "\u3000", "\t"]
    return ["".join(words[k] + blanks[n % 4] for n, k in enumerate(row)) for row in kinds]


def test_spans_are_ranges_of_words_that_can_be_said():
    texts = make_texts(40, 200)
    for text, made in zip(texts, plan(texts), strict=True):
        words = [match.span() for match in re.finditer(r"\S+", text)]
        starts, stops = {start for start, _ in words}, {stop for _, stop in words}
        columns = zip(made.start, made.stop, made.said, made.num_words, strict=True)
        for start, stop, said, num_words in columns:
            span = text[start:stop]
            assert start in starts and stop in stops and "17" not in span
            assert span.startswith("Word") and span.endswith("Word,"), "no dots at the edges"
            assert said == " ".join(["word"] * num_words) and span.count("Word,") == num_words
        ordered = [x for pair in zip(made.start, made.stop, strict=True) for x in pair]
        assert ordered == sorted(ordered)
        assert made.words == text.count("Word") + text.count("17")
        assert made.unsayable_words == text.count("17")


@pytest.mark.parametrize("unsayable", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("ratio", [0.2, 0.3, 0.8])
def test_the_ratio_is_that_of_the_words_that_can_be_said(ratio, unsayable):
    made = plan(make_texts(400, 100, unsayable=unsayable), ratio=ratio)
    sayable = sum(one.words - one.unsayable_words for one in made)
    assert abs(sum(sum(one.num_words) for one in made) / sayable - ratio) < 0.02


def test_texts_of_nothing_to_say_have_no_spans():
    for made in plan(["17 18", "... --", " \n", "."], ratio=1.0):
        assert made.said == []
    assert [(made.words, made.unsayable_words) for made in plan(["17 18", "...", ""])] == [
        (2, 2), (0, 0), (0, 0),
    ]  # fmt: skip


def test_words_are_those_of_str_split():
    blanks = [chr(code) for code in range(0x110000) if chr(code).isspace()]
    text = "a" + "a".join(blanks) + "a\u200ba\ufeffa"
    (made,) = plan([text], ratio=1.0)
    assert made.words == len(text.split()) and " ".join(made.said).split() == text.split()


def test_a_full_lexicon_is_emptied(monkeypatch):
    monkeypatch.setattr(Lexicon, "LARGEST", 3)
    lexicon = Lexicon(say)
    for words in (["a", "b", "c", "d"], ["d", "e"], ["7", "..", "e"]):
        numbers = lexicon.number(words).tolist()
        kinds = {Lexicon.UNSAYABLE: None, Lexicon.SILENT: ""}
        assert [kinds[n] if n < 0 else lexicon.said[n] for n in numbers] == list(map(say, words))
    assert len(lexicon) == 4
    assert lexicon.said[lexicon.number(["a" * 99])[0]] == "a" * 99 and "a" * 99 not in lexicon
