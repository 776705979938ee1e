"""Properties of speechlm_jax.evals.text_norm."""

import pytest

from speechlm_jax.evals.text_norm import normalize


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
    ],
)
def test_words(text, words):
    assert normalize(text) == words
    assert normalize(words) == words
