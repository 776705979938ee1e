"""All versions of a document have one key; what shows or says nothing is seen as such."""

import unicodedata

import numpy as np
import pytest

from speechlm_jax.data.content import (
    has_words,
    holds_something,
    is_blank,
    row_to_text,
    said_key,
    values_to_key,
)
from speechlm_jax.data.text_norm import normalize

VERBATIM = "  The café — “Chez Anna”, 5€;\n\tIT'S open!  "
BLANK = ["", " ", "\t\n", "\u00a0", "\u200b", "\ufeff", "\0", "\u3164", "\u2800 \u200d", "\ufe0f"]


def key(text):
    return said_key(text, otherwise="x")


@pytest.mark.parametrize(
    "change",
    [str.upper, str.strip, normalize, lambda t: unicodedata.normalize("NFD", t), "\ufeff{}".format,
     lambda t: "".join(t.split())],
)  # fmt: skip
def test_a_document_has_one_key_however_it_is_written(change):
    assert key(change(VERBATIM)) == key(VERBATIM) != key(VERBATIM + " x")


def test_a_normalised_document_has_the_key_of_the_verbatim_one_over_all_of_unicode():
    random = np.random.default_rng(0)
    codes = [*range(0xD800), *range(0xE000, 0x10000), *range(0x10000, 0x110000, 61)]
    for at in range(0, len(codes), 64):
        text = "a".join(map(chr, random.permutation(codes[at : at + 64])))
        assert key(text) == key(normalize(text))


def test_pieces_of_a_document_have_its_key():
    parts = ["It's 5", "€ at", " “Chez", " Anna” "]
    segments = [
        {"text": part, "codes": [1]} if i % 2 else {"text": part} for i, part in enumerate(parts)
    ]
    turns = [{"role": "user", "segments": segments[:2]}, {"role": "assistant",
             "segments": segments[2:]}]  # fmt: skip
    whole = values_to_key("text", ["".join(parts)])
    assert whole == values_to_key("asr", [[1], "its 5 at chez anna"])
    assert whole == values_to_key("interleaved", [segments]) == values_to_key("dialogue", [turns])
    for row in ({"text": "".join(parts)}, {"segments": segments}, {"turns": turns}):
        assert said_key(row_to_text(row), otherwise="x") == whole
    assert values_to_key("speech", [[1, 2]]) is None


def test_what_says_nothing_goes_by_what_it_is_called():
    assert said_key(" ", otherwise="a") != said_key("\u200b", otherwise="b")
    assert said_key(" ", otherwise="a") == said_key("\u200b", otherwise="a")
    assert said_key("...", otherwise="a") == said_key(" ...", otherwise="b") != key("!")
    assert said_key("\ud800", otherwise="a") == said_key("\ud800", otherwise="b")


@pytest.mark.parametrize("row", [{}, {"text": 3}, {"segments": 3}, {"segments": ["a", {"text": 3}]},
                                 {"turns": [3, {"segments": 3}]}, {"text": None}])  # fmt: skip
def test_what_is_no_text_says_nothing(row):
    assert row_to_text(row) == ""


def test_what_cannot_be_seen_is_blank_and_what_cannot_be_said_has_no_words():
    assert all(map(is_blank, BLANK)) and not any(map(has_words, BLANK))
    for text in ("...!?", "😀", "—", "_", "\ue000"):
        assert not is_blank(text) and not has_words(text)
    for text in ("a", "5", "日", "ß", " é ", "\u0301a"):
        assert not is_blank(text) and has_words(text)


SAID, HEARD, NOTHING = {"text": "a"}, {"codes": [1]}, {"text": " "}


@pytest.mark.parametrize(
    ("format", "values", "holds"),
    [
        *(("text", [text], False) for text in BLANK),
        ("text", ["...!?"], True),
        ("speech", [[]], False),
        ("speech", [[3]], True),
        *((pair, [[1], "...!?"], False) for pair in ("asr", "tts")),
        *((pair, [[], "a"], False) for pair in ("asr", "tts")),
        ("asr", [[1], "a"], True),
        ("voiced_tts", [[1], "\u200b", "anna"], False),
        ("voiced_tts", [[1], "a", "anna"], True),
        ("interleaved", [[]], False),
        ("interleaved", [[NOTHING, {"codes": []}]], False),
        ("interleaved", [[NOTHING, HEARD]], True),
        ("interleaved", [[SAID]], True),
        ("dialogue", [[{"role": "user", "segments": [SAID]},
                       {"role": "assistant", "segments": []}]], False),
        ("dialogue", [[{"role": "user", "segments": [NOTHING]},
                       {"role": "assistant", "segments": [SAID]}]], False),
        ("dialogue", [[{"role": "system", "segments": []}, {"role": "user", "segments": [HEARD]},
                       {"role": "assistant", "segments": [SAID]}]], True),
    ],
)  # fmt: skip
def test_a_document_that_holds_nothing_is_seen(format, values, holds):
    assert holds_something(format, values) is holds
