"""Figures held against claims, and what a guess would give."""

import dataclasses
import operator
from collections.abc import Mapping, Sequence

from speechlm_jax.evals.items import Figure
from speechlm_jax.report.inputs import Claim

_RULES = {
    "at least": operator.ge,
    "at most": operator.le,
    "above": operator.gt,
    "below": operator.lt,
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A claim, the number it was held against, and whether it holds; None if not measured."""

    claim: Claim
    measured: float | None
    met: bool | None


def judge(claims: Sequence[Claim], figures: Mapping[str, Figure]) -> list[Verdict]:
    """Holds every claim against its figure."""
    verdicts = []
    for claim in claims:
        figure = figures.get(claim.figure)
        measured = None if figure is None else float(getattr(figure, claim.part))
        met = None if measured is None else bool(_RULES[claim.rule](measured, claim.bar))
        verdicts.append(Verdict(claim, measured, met))
    return verdicts


def chance_of(figure: str, chance: Mapping[str, float]) -> float | None:
    """What a guess gives: by the longest beginning of the figure's name that is listed."""
    begins = [beginning for beginning in chance if figure.startswith(beginning)]
    return chance[max(begins, key=len)] if begins else None
