"""Draws the words of documents that become speech: from numbers of words to spans, many at once.

Every number that is drawn is a function of its document's keys and of its place in the draw alone,
so that neither the other documents nor their order change a document's spans.
"""

import dataclasses
from functools import lru_cache
from itertools import islice

import numpy as np

from speechlm_jax.arrays import Float, Int, UInt, ndarray

NUM_KEYS = 4  # of a document: for lengths, the last length, their order, places
LONGEST_MEAN = 1e6


@dataclasses.dataclass(frozen=True, eq=False)
class Spans:
    """Words start .. stop-1 of documents, in order of document and place."""

    document: Int[ndarray, " spans"]
    start: Int[ndarray, " spans"]
    stop: Int[ndarray, " spans"]


def sample_spans(
    num_words: Int[ndarray, " documents"],
    *,
    span_corruption_ratio: float = 0.3,
    mean_span_length: float = 10.0,
    keys: UInt[ndarray, "documents keys"],
) -> Spans:
    """Draws spans of words to speak, in order, without overlap.

    Lengths are Poisson, drawn until their sum reaches the ratio of the document (Zeng et al.,
    section 2.2: mean 10, ratio 0.3); places are uniform among all those that keep at least one
    word between two spans (with too few words for that, spans may touch). The paper does not say
    what happens to the length that overshoots. Here it is kept with the probability that makes
    the expected sum exact: always keeping it would give 0.35 at 100 words, and cutting it would
    make spans shorter than requested.

    Args:
      num_words: words of each document.
      span_corruption_ratio: fraction of the words to speak.
      mean_span_length: mean of the Poisson distribution in words; zeros are not spans.
      keys: `NUM_KEYS` random numbers of 64 bits for each document.

    Raises:
      ValueError: the ratio is not from 0 to 1, or the mean not above 0 and at most `LONGEST_MEAN`.
    """
    if not 0 <= span_corruption_ratio <= 1 or not 0 < mean_span_length <= LONGEST_MEAN:
        raise ValueError(
            f"needs 0 <= span_corruption_ratio <= 1 and 0 < mean_span_length <= {LONGEST_MEAN:.0f}"
        )
    targets = span_corruption_ratio * num_words
    document, lengths = _draw_lengths(num_words, targets, mean_span_length, keys)
    return _place(document, lengths, num_words, keys)


def ragged(counts: Int[ndarray, " groups"]) -> tuple[Int[ndarray, " all"], Int[ndarray, " all"]]:
    """Returns the group, and the number in the group, of each member of groups of these sizes."""
    group = np.repeat(np.arange(len(counts)), counts)
    return group, np.arange(len(group)) - _before(counts)[group]


def _draw_lengths(
    num_words: np.ndarray, targets: np.ndarray, mean: float, keys: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the document and the length of each span."""
    counts = np.where(targets > 0, 8 + np.ceil(1.5 * targets / max(mean, 1.0)), 0).astype(np.int64)
    while True:
        document, number = ragged(counts)
        drawn = np.searchsorted(_nonzero_poisson(mean), _uniform(keys[document, 0], number)) + 1
        so_far = np.concatenate([[0], np.cumsum(drawn)])
        first = _before(counts)
        is_short = so_far[first + counts] - so_far[first] < targets
        if not is_short.any():
            break
        counts = np.where(is_short, 2 * counts, counts)  # the numbers drawn before stay
    before = so_far[:-1] - so_far[first][document]
    needed = before < targets[document]
    document, before, drawn = document[needed], before[needed], drawn[needed]
    # A span is no longer than what the other spans leave free.
    lengths = np.minimum(drawn, num_words[document] - before)
    chance = _uniform(keys[:, 1], np.zeros(len(keys), np.int64))[document]
    kept = chance * lengths < targets[document] - before  # only the last one can overshoot
    return document[kept], lengths[kept]


def _place(
    document: np.ndarray, lengths: np.ndarray, num_words: np.ndarray, keys: np.ndarray
) -> Spans:
    """Places spans (stars and bars): all spreads of free words over the gaps are equally likely."""
    counts = np.bincount(document, minlength=len(num_words))
    number = ragged(counts)[1]
    lengths = lengths[np.lexsort((_bits(keys[document, 2], number), document))]  # shuffled
    spoken = np.bincount(document, weights=lengths, minlength=len(num_words)).astype(np.int64)
    free = num_words - spoken
    apart = (free >= counts - 1).astype(np.int64)
    last_bar = (free - apart * np.maximum(counts - 1, 0))[document] + number
    drawn = (_uniform(keys[document, 3], number) * (last_bar + 1)).astype(np.int64)
    bars = np.array(_distinct(drawn.tolist(), last_bar.tolist(), counts.tolist()), np.int64)
    before = np.cumsum(lengths) - lengths - _before(spoken)[document]
    start = bars - number + before + apart[document] * number
    return Spans(document, start, start + lengths)


def _distinct(drawn: list[int], last: list[int], counts: list[int]) -> list[int]:
    """Returns sorted bars of each document, every set of them equally likely (Floyd's algorithm).

    Args:
      drawn: a number from 0 to `last` for each bar.
      last: highest place of each bar: that of a document's first bar, then one more for each bar.
      counts: bars of each document.
    """
    bars: list[int] = []
    pairs = zip(drawn, last, strict=True)
    for count in counts:
        taken: set[int] = set()
        for place, highest in islice(pairs, count):
            taken.add(highest if place in taken else place)
        bars += sorted(taken)
    return bars


def _before(counts: np.ndarray) -> np.ndarray:
    """Returns the sum of all earlier counts."""
    return np.cumsum(counts) - counts


@lru_cache(maxsize=8)
def _nonzero_poisson(mean: float) -> Float[ndarray, " lengths"]:
    """Returns the probability of a length of at most 1, 2, ... of a nonzero Poisson variable."""
    lengths = np.arange(1, 32 + int(mean + 12 * mean**0.5))
    log_likely = lengths * np.log(mean) - np.cumsum(np.log(lengths))
    cumulative = np.cumsum(np.exp(log_likely - log_likely.max()))
    return cumulative / cumulative[-1]


def _uniform(keys: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Returns random numbers in [0, 1): the `numbers`-th of each key."""
    return (_bits(keys, numbers) >> np.uint64(11)) * 2.0**-53


def _bits(keys: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Returns 64 random bits: output `numbers` of SplitMix64 by key (Steele et al., 2014)."""
    state = keys + (numbers + 1).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
