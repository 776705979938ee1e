"""Spans: right in number and length on average, never overlapping, anywhere equally likely."""

import numpy as np
import pytest

from speechlm_jax.interleave.spans import Span, sample_spans


def draw(num_words: int, count: int, seed: int = 0, **options) -> list[list[Span]]:
    rng = np.random.default_rng(seed)
    return [sample_spans(num_words, rng=rng, **options) for _ in range(count)]


@pytest.mark.parametrize("num_words", [0, 1, 2, 9, 40, 300])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_spans_are_in_order_inside_and_apart(num_words, ratio):
    for spans in draw(num_words, 60, span_corruption_ratio=ratio, mean_span_length=4.0):
        assert all(0 <= s.start < s.stop <= num_words for s in spans)
        gaps = [b.start - a.stop for a, b in zip(spans, spans[1:], strict=False)]
        free = num_words - sum(map(len, spans))
        assert min(gaps, default=1) >= (1 if free >= len(spans) - 1 else 0)


@pytest.mark.parametrize(("num_words", "ratio"), [(30, 0.3), (100, 0.3), (100, 0.2), (1000, 0.4)])
def test_the_ratio_is_met_on_average(num_words, ratio):
    shares = [
        sum(map(len, s)) / num_words for s in draw(num_words, 1500, span_corruption_ratio=ratio)
    ]
    error = np.std(shares) / np.sqrt(len(shares))
    assert abs(np.mean(shares) - ratio) < 4 * error


def test_lengths_are_poisson():
    """Mean and variance are 10 on documents so long that the last span does not matter."""
    lengths = [len(span) for spans in draw(2000, 100) for span in spans]
    assert abs(np.mean(lengths) - 10) < 0.2 and abs(np.var(lengths) - 10) < 0.8


def test_every_word_but_those_at_the_edges_is_as_likely_to_be_spoken():
    spoken = np.zeros(100)
    for spans in draw(100, 3000):
        for span in spans:
            spoken[span.start : span.stop] += 1
    middle = spoken[15:85] / 3000
    assert np.ptp(middle) < 0.08 and abs(middle.mean() - 0.3) < 0.03


def test_places_are_uniform():
    """One span of 3 of 7 words can start at 5 places: all the same."""
    starts = np.zeros(5)
    for spans in draw(7, 6000, span_corruption_ratio=3 / 7, mean_span_length=3.0):
        if [len(s) for s in spans] == [3]:
            starts[spans[0].start] += 1
    chi_square = ((starts - starts.mean()) ** 2 / starts.mean()).sum()
    assert starts.sum() > 500 and chi_square < 18.5  # 0.1%


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="span_corruption_ratio"):
        draw(10, 1, span_corruption_ratio=1.2)
