"""Codes -> usage and perplexity of the codebook."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from speechlm_jax.arrays import Integer, ndarray
from speechlm_jax.evals.items import RESAMPLES, Figure, Item

Codes = Integer[ndarray, " frames"] | Sequence[int]


@dataclasses.dataclass(frozen=True)
class CodebookUse:
    """Usage of a codebook.

    Attributes:
      codebook_usage: fraction of entries that occur.
      codebook_perplexity: perplexity in entries.
    """

    codebook_usage: float
    codebook_perplexity: float


def code_counts(codes: Iterable[Codes], *, codebook_size: int) -> Integer[ndarray, " codebook"]:
    """Counts how often each entry occurs; ValueError for a code outside the codebook."""
    rows = [np.asarray(row, np.int64) for row in codes]
    joined = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    if joined.size and not 0 <= joined.min() <= joined.max() < codebook_size:
        raise ValueError(f"codes outside 0..{codebook_size - 1}")
    return np.bincount(joined, minlength=codebook_size)


def codebook_use(counts: Integer[ndarray, " codebook"]) -> CodebookUse:
    """Returns usage, and perplexity exp(-sum p ln p) of entry frequencies p (0 without codes)."""
    return CodebookUse(
        codebook_usage=float(np.mean(counts > 0)),
        codebook_perplexity=float(_perplexity(counts[None].astype(float))[0]),
    )


def usage_items(figure: str, counts: Integer[ndarray, " codebook"]) -> list[Item]:
    """Returns one item per entry of the codebook: numerator 1 if it occurs."""
    return [
        Item(
            figure=figure,
            voice="",
            fact="",
            wording="",
            reference=f"entry {entry}",
            hypothesis=f"{count} codes",
            numerator=float(count > 0),
            denominator=1.0,
        )
        for entry, count in enumerate(counts)
    ]


def perplexity_figure(
    codes: Sequence[Codes], *, codebook_size: int, seed: int = 0, resamples: int = RESAMPLES
) -> Figure:
    """Returns the perplexity over all clips; it is no ratio of sums, so it has no items.

    The interval is the value +- 1.96 standard deviations of its draws: a draw of clips holds fewer
    different codes than all clips, so the quantiles of the draws would lie below the value.
    """
    if not len(codes):
        raise ValueError("no clips to count")
    clips = np.stack([code_counts([row], codebook_size=codebook_size) for row in codes])
    value = codebook_use(clips.sum(0)).codebook_perplexity
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(clips), np.full(len(clips), 1 / len(clips)), size=resamples)
    half = 1.96 * float(np.std(_perplexity(drawn.astype(float) @ clips)))
    return Figure(value=value, low=value - half, high=value + half, count=len(clips))


def _perplexity(counts: np.ndarray) -> np.ndarray:
    """Returns the perplexity of each row of counts, 0 for an empty row."""
    total = counts.sum(-1, keepdims=True)
    share = counts / np.maximum(total, 1)
    entropy = -np.sum(share * np.log(np.where(share > 0, share, 1.0)), axis=-1)
    return np.where(total[..., 0] > 0, np.exp(entropy), 0.0)
