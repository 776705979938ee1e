"""Scored items -> figures: every figure is the ratio of two sums over items kept on disk."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import binomtest

from speechlm_jax import artifacts
from speechlm_jax.arrays import Float, ndarray
from speechlm_jax.errors import UserError

MARGIN = "margin"
RESAMPLES = 2000
By = Literal["item", "fact", "voice"]


@dataclasses.dataclass(frozen=True)
class Item:
    """One scored answer, clip, row or codebook entry.

    Attributes:
      figure: name of the figure that it counts for, e.g. "qa/s2t/interleaved".
      voice, fact, wording: voice of the question, the fact asked for, the wording; empty if none.
      reference, hypothesis: the right answer, and the model's.
      numerator, denominator: terms of the figure's two sums.
    """

    figure: str
    voice: str
    fact: str
    wording: str
    reference: str
    hypothesis: str
    numerator: float
    denominator: float


@dataclasses.dataclass(frozen=True)
class Figure:
    """A ratio (or a difference of two), its 95% interval, and its number of items."""

    value: float
    low: float
    high: float
    count: int


def items_file(folder: str | Path, figure: str) -> Path:
    """Returns the file of a figure's items: `qa/s2t/baseline` -> `folder/qa.s2t.baseline.jsonl`."""
    return Path(folder) / f"{figure.replace('/', '.')}.jsonl"


def write_items(folder: str | Path, items: Iterable[Item]) -> list[Path]:
    """Writes one file per figure, each whole or not at all; returns the files."""
    groups = by_figure(items)
    for figure, group in groups.items():
        artifacts.write_jsonl(items_file(folder, figure), (dataclasses.asdict(i) for i in group))
    return [items_file(folder, figure) for figure in groups]


def read_items(folder: str | Path) -> list[Item]:
    """Reads every `*.jsonl` of a folder; UserError, with file and row, if a row is not an item."""
    items = []
    for path in sorted(Path(folder).glob("*.jsonl")):
        for number, row in enumerate(artifacts.read_jsonl(path), 1):
            items.append(_to_item(row, f"{path}: row {number}"))
    return items


def by_figure(items: Iterable[Item]) -> dict[str, list[Item]]:
    """Groups items by the figure that they count for, in order of appearance."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.figure, []).append(item)
    return groups


def figure_from_items(
    items: Sequence[Item], *, by: By | None = None, seed: int = 0, resamples: int = RESAMPLES
) -> Figure:
    """Returns the sum of numerators / sum of denominators, with its 95% interval.

    The interval is a percentile bootstrap. If all groups agree (0% or 100%, say) a bootstrap has no
    width, however few they are; then it is the exact one of Clopper and Pearson (1934): groups
    unlike these may be as frequent as it allows, and are taken to be all 0 or all 1.

    Args:
      items: items of one figure; ValueError if there are none or the denominators sum to 0.
      by: unit that is drawn with replacement. Answers about one fact are not independent, so by
        default it is the fact if every item names one, else the item.
      seed: seed of the draws.
    """
    sums = _group_sums(items, by or default_by(items))
    draws = _resampled_sums(sums, seed=seed, resamples=resamples)
    figure = _figure(_ratio(sums.sum(0)), _ratio(draws), count=len(items))
    return _exact_if_alike(figure, _ratio(sums), lowest=0.0)


def margin_from_items(
    first: Sequence[Item],
    second: Sequence[Item],
    *,
    by: By = "fact",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Figure:
    """Returns the figure of `first` minus that of `second`, by a paired bootstrap over groups.

    Both arms answer the same groups (facts, by default), so each draw takes the same groups from
    both. If the difference is the same for all, the interval is exact, as in `figure_from_items`.

    Raises:
      ValueError: an arm has no items, or the arms were not asked the same groups.
    """
    mine, theirs = _sums_by_group(first, by), _sums_by_group(second, by)
    if by == "item" and len(first) != len(second) or mine.keys() != theirs.keys():
        raise ValueError(f"the two arms were not asked the same: they differ by {by}")
    pairs = np.stack([[*mine[group], *theirs[group]] for group in mine])
    draws = _resampled_sums(pairs, seed=seed, resamples=resamples)
    total = pairs.sum(0)
    figure = _figure(
        _ratio(total[:2]) - _ratio(total[2:]),
        _ratio(draws[:, :2]) - _ratio(draws[:, 2:]),
        count=len(first),
    )
    return _exact_if_alike(figure, _ratio(pairs[:, :2]) - _ratio(pairs[:, 2:]), lowest=-1.0)


def figures_from_items(
    items: Iterable[Item], *, arms: tuple[str, str] | None = None, seed: int = 0
) -> dict[str, Figure]:
    """Returns the figure of each name in the items.

    Args:
      items: items of any number of figures.
      arms: names of two models that were compared. If `STEM/FIRST` and `STEM/SECOND` both have
        items, `STEM/margin` is the first one's figure minus the second one's.
      seed: seed of the draws.
    """
    groups = by_figure(items)
    figures = {name: figure_from_items(group, seed=seed) for name, group in groups.items()}
    for name in groups:
        stem, _, arm = name.rpartition("/")
        if arms is None or arm != arms[0]:
            continue
        other = f"{stem}/{arms[1]}"
        if other in groups:
            figures[f"{stem}/{MARGIN}"] = margin_from_items(
                groups[name], groups[other], by=default_by(groups[name]), seed=seed
            )
    return figures


def default_by(items: Sequence[Item]) -> By:
    """Returns "fact" if every item names one, else "item"."""
    return "fact" if items and all(item.fact for item in items) else "item"


def _sums_by_group(items: Sequence[Item], by: By) -> dict[str, np.ndarray]:
    if not items:
        raise ValueError("no items to count")
    groups: dict[str, np.ndarray] = {}
    for number, item in enumerate(items):
        group = str(number) if by == "item" else getattr(item, by)
        groups.setdefault(group, np.zeros(2))
        groups[group] += (item.numerator, item.denominator)
    return groups


def _group_sums(items: Sequence[Item], by: By) -> Float[ndarray, "groups 2"]:
    return np.stack(list(_sums_by_group(items, by).values()))


def _resampled_sums(
    sums: Float[ndarray, "groups columns"], *, seed: int, resamples: int
) -> Float[ndarray, "resamples columns"]:
    """Returns column sums of `resamples` draws of groups with replacement, in bounded memory."""
    rng = np.random.default_rng(seed)
    size = len(sums)
    block = max(1, 2**20 // size)
    drawn = []
    for start in range(0, resamples, block):
        chosen = rng.integers(size, size=(min(block, resamples - start), size))
        drawn.append(sums[chosen].sum(1))
    return np.concatenate(drawn)


def _ratio(sums: np.ndarray) -> np.ndarray:
    """Returns numerator / denominator (the last axis), NaN where the denominator is 0."""
    numerator, denominator = sums[..., 0], sums[..., 1]
    empty = denominator == 0
    return np.where(empty, np.nan, numerator / np.where(empty, 1.0, denominator))


def _figure(value: Any, draws: Float[ndarray, " draws"], *, count: int) -> Figure:
    if not np.isfinite(value):
        raise ValueError("the denominators of the items sum to 0")
    low, high = np.nanpercentile(draws, (2.5, 97.5))
    return Figure(value=float(value), low=float(low), high=float(high), count=count)


def _exact_if_alike(figure: Figure, ratios: Float[ndarray, " groups"], *, lowest: float) -> Figure:
    """Returns the figure, with an exact interval if the ratios of all groups are one number."""
    told = ratios[np.isfinite(ratios)]
    if not lowest <= figure.value <= 1 or np.ptp(told) > 1e-12:
        return figure
    alike = binomtest(len(told), len(told)).proportion_ci(0.95, method="exact").low
    low, high = (alike * figure.value + (1 - alike) * other for other in (lowest, 1.0))
    return dataclasses.replace(figure, low=low, high=high)


def _to_item(row: dict[str, Any], where: str) -> Item:
    names = [field.name for field in dataclasses.fields(Item)]
    if set(row) != set(names):
        raise UserError(f"{where}: is not a scored item; its fields must be {', '.join(names)}")
    try:
        numerator, denominator = float(row["numerator"]), float(row["denominator"])
    except (TypeError, ValueError):
        raise UserError(f"{where}: numerator and denominator must be numbers") from None
    words = {name: str(row[name]) for name in names[:-2]}
    return Item(**words, numerator=numerator, denominator=denominator)
