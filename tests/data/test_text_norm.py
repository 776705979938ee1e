"""Properties of speechlm_jax.data.text_norm."""

import pytest

from speechlm_jax.data.text_norm import normalize, word_to_said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It is  PARIS.", "it is paris"),
        ("“Don’t,” she said — twice!", "don't she said twice"),
        ("'quoted' dogs' ones", "quoted dogs ones"),
        ("snake_case, semi-detached", "snake case semi detached"),
        ("ＦＵＬＬ width", "full width"),
        ("Über ÉTÉ 北京", "über été 北京"),
        ("?!", ""),
        ("हिन्दी, ภาษาไทย!", "हिन्दी ภาษาไทย"),
    ],
)
def test_words(text, words):
    assert normalize(text) == words
    assert normalize(words) == words


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("PARIS.", "paris"),
        ("“Don’t,”", "don't"),
        ("(semi-detached)", "semi detached"),
        ("said—twice!", "said twice"),
        ("well...yes", "well yes"),
        ("U.S.", "u s"),
        ("*bold*", "bold"),
        ("\ufeffÜber\u200b", "über"),
        ("हिन्दी", "हिन्दी"),
        ("(1980s),", "1980s"),
    ],
)
def test_a_word_is_said_as_its_normal_form(word, said):
    assert word_to_said(word) == said == normalize(word)


@pytest.mark.parametrize("word", ["...", "—", "?!", "''", "\u200b", "_", "•"])
def test_nothing_is_said_for_punctuation(word):
    assert word_to_said(word) == ""


@pytest.mark.parametrize(
    "word",
    [
        *("$5.50", "5.50", "1,000", "12:30", "-3", ".5", "5%", "½", "m²", "#1", "3/4", "Ⅷ", "90's"),
        *("https://a.org/b?c=1", "example.com", "www.x.org,", "me@x.org", "C:\\x", "snake_case"),
        *("&", "R&D", "A+", "and/or", "km/h", "😀", "x=1", "foo\u200bbar", "word(s)", "a" * 51),
        "\u0301",
    ],
)
def test_what_is_read_as_something_else_than_its_normal_form_is_not_said(word):
    assert word_to_said(word) is None
