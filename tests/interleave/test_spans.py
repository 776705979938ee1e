"""Spans: right in number and length on average, never overlapping, anywhere equally likely."""

from typing import Any

import numpy as np
import pytest

from speechlm_jax.interleave.spans import NUM_KEYS, sample_spans


def make_keys(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(2**64, size=(count, NUM_KEYS), dtype=np.uint64)


def draw(
    num_words: int, count: int, *, seed: int = 0, **options: Any
) -> list[list[tuple[int, int]]]:
    """Spans of so many documents."""
    spans = sample_spans(np.full(count, num_words), keys=make_keys(count, seed), **options)
    made: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    for document, *span in zip(spans.document, spans.start, spans.stop, strict=True):
        made[document].append((int(span[0]), int(span[1])))
    return made


def lengths_of(documents) -> np.ndarray:
    return np.array([stop - start for spans in documents for start, stop in spans])


@pytest.mark.parametrize("num_words", [0, 1, 2, 9, 40, 300])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("mean", [1e-9, 4.0, 1e6])
def test_spans_are_in_order_inside_and_apart(num_words, ratio, mean):
    for spans in draw(num_words, 60, span_corruption_ratio=ratio, mean_span_length=mean):
        assert all(0 <= start < stop <= num_words for start, stop in spans)
        gaps = [b[0] - a[1] for a, b in zip(spans, spans[1:], strict=False)]
        free = num_words - lengths_of([spans]).sum()
        assert min(gaps, default=1) >= (1 if free >= len(spans) - 1 else 0)


@pytest.mark.parametrize(("num_words", "ratio"), [(30, 0.3), (100, 0.3), (100, 0.2), (1000, 0.4)])
def test_the_ratio_is_met_on_average(num_words, ratio):
    documents = draw(num_words, 1500, span_corruption_ratio=ratio)
    shares = [lengths_of([spans]).sum() / num_words for spans in documents]
    error = np.std(shares) / np.sqrt(len(shares))
    assert abs(np.mean(shares) - ratio) < 4 * error


def test_lengths_are_poisson():
    """Mean and variance are 10 on documents so long that the last span does not matter."""
    lengths = lengths_of(draw(2000, 100))
    assert abs(np.mean(lengths) - 10) < 0.2 and abs(np.var(lengths) - 10) < 0.8


@pytest.mark.parametrize("mean", [0.5, 3.0])
def test_lengths_are_those_of_numpy_without_zeros(mean):
    found = np.bincount(lengths_of(draw(30_000, 2, mean_span_length=mean)), minlength=30)[:30]
    wanted = np.random.default_rng(0).poisson(mean, 400_000)
    wanted = np.bincount(wanted[wanted > 0], minlength=30)[:30]
    np.testing.assert_allclose(found / found.sum(), wanted / wanted.sum(), atol=0.015)


def test_every_word_but_those_at_the_edges_is_as_likely_to_be_spoken():
    spoken = np.zeros(100)
    for spans in draw(100, 3000):
        for start, stop in spans:
            spoken[start:stop] += 1
    middle = spoken[15:85] / 3000
    assert np.ptp(middle) < 0.08 and abs(middle.mean() - 0.3) < 0.03


def test_places_are_uniform():
    """One span of 3 of 7 words can start at 5 places: all the same."""
    starts = np.zeros(5)
    for spans in draw(7, 6000, span_corruption_ratio=3 / 7, mean_span_length=3.0):
        if lengths_of([spans]).tolist() == [3]:
            starts[spans[0][0]] += 1
    chi_square = ((starts - starts.mean()) ** 2 / starts.mean()).sum()
    assert starts.sum() > 500 and chi_square < 18.5  # 0.1%


def test_places_of_several_spans_are_uniform():
    """Two spans of 1 of 6 words, apart: ten pairs of places, all the same."""
    documents = draw(6, 5000, span_corruption_ratio=2 / 6, mean_span_length=1e-9)
    found = [tuple(start for start, _ in spans) for spans in documents]
    pairs, counts = np.unique(found, axis=0, return_counts=True)
    chi_square = ((counts - 500) ** 2 / 500).sum()
    assert len(pairs) == 10 and chi_square < 27.9  # 0.1%


def test_other_documents_do_not_change_a_documents_spans():
    keys, num_words = make_keys(30), np.arange(30) * 20
    together = sample_spans(num_words, keys=keys)
    backwards = sample_spans(num_words[::-1], keys=keys[::-1])
    for document in range(30):
        alone = sample_spans(num_words[[document]], keys=keys[[document]])
        for many, number in ((together, document), (backwards, 29 - document)):
            chosen = many.document == number
            assert many.start[chosen].tolist() == alone.start.tolist()
            assert many.stop[chosen].tolist() == alone.stop.tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"span_corruption_ratio": 1.2},
        {"span_corruption_ratio": float("nan")},
        {"mean_span_length": 0.0},
        {"mean_span_length": float("inf")},
    ],
)
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match="span_corruption_ratio"):
        draw(10, 1, **options)
