"""Which words of a document become speech: number of words -> spans."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Span:
    """Words start .. stop-1 of a document."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def sample_spans(
    num_words: int,
    *,
    span_corruption_ratio: float = 0.3,
    mean_span_length: float = 10.0,
    rng: np.random.Generator,
) -> list[Span]:
    """Draws spans of words that are to be spoken, in order, without overlap.

    Lengths are Poisson, drawn until their sum reaches the ratio of the document (Zeng et al.,
    section 2.2: mean 10, ratio 0.3); places are uniform among all those that keep at least one
    word between two spans (with too few words for that, spans may touch). The paper does not say
    what becomes of the length that overshoots. Here it is kept with the probability that makes
    the expected sum exact: always keeping it would give 0.35 at 100 words, and cutting it would
    make spans shorter than asked for.

    Args:
      num_words: words of the document.
      span_corruption_ratio: fraction of the words to speak.
      mean_span_length: mean of the Poisson distribution in words; zeros are not spans.
      rng: source of randomness.
    """
    if not 0 <= span_corruption_ratio <= 1 or not mean_span_length > 0:
        raise ValueError("needs 0 <= span_corruption_ratio <= 1 and mean_span_length > 0")
    lengths = _draw_lengths(num_words, span_corruption_ratio * num_words, mean_span_length, rng)
    rng.shuffle(lengths)
    return _place(lengths, num_words, rng)


def _draw_lengths(
    num_words: int, target: float, mean: float, rng: np.random.Generator
) -> list[int]:
    lengths, left = [], target
    while left > 0:
        # A span is no longer than what the other spans leave free.
        length = min(int(rng.poisson(mean)), num_words - sum(lengths))
        if length > left and rng.random() >= left / length:
            break
        if length:
            lengths.append(length)
        left -= length
    return lengths


def _place(lengths: list[int], num_words: int, rng: np.random.Generator) -> list[Span]:
    """Stars and bars: every way to spread the free words over the gaps is equally likely."""
    count, free = len(lengths), num_words - sum(lengths)
    apart = 1 if free >= count - 1 else 0
    free -= apart * max(count - 1, 0)
    bars = np.sort(rng.choice(free + count, count, replace=False)) if count else []
    spans, before = [], 0
    for number, (bar, length) in enumerate(zip(bars, lengths, strict=True)):
        start = int(bar) - number + before + apart * number
        spans.append(Span(start, start + length))
        before += length
    return spans
