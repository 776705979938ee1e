"""Checks figures against claims, and gives the value that a guess would reach."""

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
    """A claim, the number that was compared, and whether the claim is met; None if not measured."""

    claim: Claim
    measured: float | None
    met: bool | None


def judge(claims: Sequence[Claim], figures: Mapping[str, Figure]) -> list[Verdict]:
    """Checks every claim against its figure."""
    verdicts = []
    for claim in claims:
        figure = figures.get(claim.figure)
        measured = None if figure is None else float(getattr(figure, claim.part))
        met = None if measured is None else bool(_RULES[claim.rule](measured, claim.bar))
        verdicts.append(Verdict(claim, measured, met))
    return verdicts


def chance_of(figure: str, chance: Mapping[str, float]) -> float | None:
    """Returns the value of a guess, listed by the longest prefix of the figure's name, or None."""
    begins = [beginning for beginning in chance if figure.startswith(beginning)]
    return chance[max(begins, key=len)] if begins else None
