"""Turns a declared mixture, shares of a budget by phase, into a plan with exact counts."""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from speechlm_jax import config as configs
from speechlm_jax.data.plan import MixturePlan, Phase, TaskRows
from speechlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Share:
    """A task's share of a phase.

    Attributes:
      kind: "fraction" of the phase's budget, a number of "epochs", or a part of the "rest".
      amount: the fraction, the epochs, or the weight among the tasks that share the rest.
    """

    kind: Literal["fraction", "epochs", "rest"]
    amount: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.amount < math.inf:
            raise UserError(
                f"share {self.kind}: {self.amount} must be a number above 0; or leave the task out"
            )
        if self.kind == "fraction" and self.amount > 1:
            raise UserError(f"share fraction: {self.amount} is more than the whole")


@dataclasses.dataclass(frozen=True)
class PhaseSpec:
    """A phase as declared, e.g. 1T tokens: 30% text, one epoch of speech, the rest interleaved.

    Give `tokens` or `rows`, or neither if every share is in epochs. Fractions are of that unit;
    tokens are turned into rows by the mean tokens of each task's rows, padding excluded.

    Attributes:
      name: name of the phase, in logs.
      shares: task -> its share of the phase (`fraction`, `epochs`, `rest`).
      tokens: budget of the phase in tokens.
      rows: budget of the phase in rows.
    """

    name: str
    shares: dict[str, Share]
    tokens: int | None = None
    rows: int | None = None

    def __post_init__(self) -> None:
        configs.at_least(self, 1, "tokens", "rows", most=10**18)


def fraction(amount: float | int) -> Share:
    """Takes a fixed part of the phase's budget (the paper: 30% text)."""
    return Share("fraction", float(amount))


def epochs(amount: float | int = 1.0) -> Share:
    """Takes every row `amount` times (the paper: unsupervised and supervised speech, once each)."""
    return Share("epochs", float(amount))


def rest(weight: float | int = 1.0) -> Share:
    """Takes what the others leave, by weight (the paper: interleaved)."""
    return Share("rest", float(weight))


def rates_to_shares(rates: Mapping[str, float | int]) -> dict[str, Share]:
    """Turns SeqIO's rates into fractions of the budget; a rate of 0 leaves the task out.

    SeqIO draws examples by rate. Rows are full of tokens, so here a rate is a share of tokens.
    """
    total = sum(rates.values())
    if not 0 < total < math.inf or not all(rate >= 0 for rate in rates.values()):
        raise UserError("mixture rates: at least one must be above 0, none below, and all finite")
    return {name: fraction(rate / total) for name, rate in rates.items() if rate}


def make_plan(
    tasks: Sequence[TaskRows], phases: Sequence[PhaseSpec], *, seed: int = 0
) -> MixturePlan:
    """Turns declared phases into a plan; section 4 of the GLM-4-Voice report is one such phase.

    Raises:
      UserError: a task is unknown, named twice or without rows, or shares do not fill the budget.
    """
    known = {task.name: task for task in tasks}
    if len(known) != len(tasks):
        raise UserError("plan: two tasks have the same name")
    made = []
    for phase in phases:
        for name in phase.shares:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                raise UserError(f"plan: phase {phase.name} has no task '{name}'{hint}")
            if not known[name].rows:
                raise UserError(
                    f"plan: task {name} of phase {phase.name} has no rows; prepare its data"
                )
        counts = _phase_counts(phase, known)
        made.append(Phase(phase.name, tuple(counts.get(task.name, 0) for task in tasks)))
    return MixturePlan(tuple(tasks), tuple(made), seed)


def _phase_counts(phase: PhaseSpec, tasks: Mapping[str, TaskRows]) -> dict[str, int]:
    """Returns each task's rows in a phase: `rows` in all, or as near to `tokens` as rows allow."""
    if phase.tokens is not None and phase.rows is not None:
        raise UserError(f"plan: phase {phase.name}: give tokens or rows, not both")
    in_epochs = {
        name: round(share.amount * tasks[name].rows)
        for name, share in phase.shares.items()
        if share.kind == "epochs"
    }
    others = {name: share for name, share in phase.shares.items() if share.kind != "epochs"}
    budget = phase.tokens if phase.tokens is not None else phase.rows
    if budget is None:
        if others:
            raise UserError(
                f"plan: phase {phase.name}: {', '.join(others)} need a budget; set tokens or rows"
            )
        return in_epochs
    # What one row costs in the budget's unit.
    cost = {
        name: tasks[name].tokens / tasks[name].rows if phase.tokens is not None else 1.0
        for name in phase.shares
    }
    amounts = {n: s.amount * budget for n, s in others.items() if s.kind == "fraction"}
    left = budget - sum(amounts.values()) - sum(n * cost[name] for name, n in in_epochs.items())
    _check_budget(phase, left, budget)
    weights = {name: share.amount for name, share in others.items() if share.kind == "rest"}
    for name, weight in weights.items():
        amounts[name] = max(left, 0.0) * weight / sum(weights.values())
    quotas = {name: amount / cost[name] for name, amount in amounts.items()}
    if phase.rows is None:
        rounded = {name: round(quota) for name, quota in quotas.items()}
    else:
        rounded = _round_to(quotas, phase.rows - sum(in_epochs.values()))
    return in_epochs | rounded


def _check_budget(phase: PhaseSpec, left: float, budget: int) -> None:
    unit = "tokens" if phase.tokens is not None else "rows"
    has_rest = any(share.kind == "rest" for share in phase.shares.values())
    # One row, or a millionth: fractions such as 0.1 do not add up exactly.
    slack = max(1e-6 * budget, 0.5 if unit == "rows" else 0.0)
    if left < -slack:
        raise UserError(
            f"plan: phase {phase.name}: shares take {budget - left:.0f} of {budget} {unit}; "
            "lower them or raise the budget"
        )
    if left > slack and not has_rest:
        raise UserError(
            f"plan: phase {phase.name}: {left:.0f} of {budget} {unit} belong to no task; "
            "give one of them the rest"
        )


def _round_to(quotas: Mapping[str, float], total: int) -> dict[str, int]:
    """Returns whole numbers near quotas that sum to `total` (largest remainders first)."""
    floors = {name: int(quota) for name, quota in quotas.items()}
    by_remainder = sorted(quotas, key=lambda name: (floors[name] - quotas[name], name))
    for name in by_remainder[: max(total - sum(floors.values()), 0)]:
        floors[name] += 1
    return floors
