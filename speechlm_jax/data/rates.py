"""Turns the rates of a SeqIO mixture into a number for each task, before any task is prepared."""

import collections
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import seqio

from speechlm_jax.errors import UserError
from speechlm_jax.user_code import user_code

_log = logging.getLogger("speechlm.data")

# As in SeqIO: a number, or a function of the task (or of the mixture inside the mixture).
Rate = int | float | Callable[[Any], float]


def to_rates(mixture: str, rates: Mapping[str, Any]) -> dict[str, float]:
    """Returns the rates of a mixture's members as numbers.

    Raises:
      UserError: a rate is below 0 or not a finite number, or none is above 0.
    """
    found = {name: _to_number(rate) for name, rate in rates.items()}
    for name, rate in found.items():
        if not 0 <= rate < math.inf:
            raise UserError(
                f"mixture {mixture}: the rate of {name} is {rate:g} "
                f"({type(rates[name]).__name__}); give a finite number, 0 or more"
            )
    if not 0 < sum(found.values()) < math.inf:
        raise UserError(f"mixture {mixture}: its rates sum to 0 or to no number; change them")
    return found


def task_rates(provider: seqio.Task | seqio.Mixture) -> dict[str, float]:
    """Returns the rates above 0 by task, in order of their names; a task alone has rate 1.

    The tasks of a mixture inside a mixture share its rate, as in SeqIO. A function is called once.

    Raises:
      UserError: `to_rates` refuses the rates, a function fails, or a task is in no registry.
    """
    if isinstance(provider, seqio.Task):
        return {provider.name: 1.0}
    members = {name: _member(provider, name) for name in provider.rate_per_task_name}
    rates = to_rates(provider.name, {name: _ask(provider, members[name]) for name in members})
    found: dict[str, float] = collections.defaultdict(float)
    for name, rate in rates.items():
        if not rate:
            _log.info("mixture %s: %s has rate 0 and is left out", provider.name, name)
            continue
        parts = task_rates(members[name])
        for task, part in parts.items():
            found[task] += rate * part / sum(parts.values())
    return dict(sorted(found.items()))


def _member(mixture: seqio.Mixture, name: str) -> seqio.Task | seqio.Mixture:
    if name in seqio.TaskRegistry.names():  # first, as in SeqIO's own mixtures
        return seqio.TaskRegistry.get(name)
    if name in seqio.MixtureRegistry.names():
        return seqio.MixtureRegistry.get(name)
    raise UserError(f"mixture {mixture.name}: {name} is in no registry; use seqio.TaskRegistry.add")


def _ask(mixture: seqio.Mixture, member: seqio.Task | seqio.Mixture) -> Any:
    """Returns the rate as it is declared, or as its function returns it."""
    rate = mixture.rate_per_task_name[member.name]
    if not callable(rate):
        return rate
    with user_code(f"mixture {mixture.name}: the rate of {member.name}"):
        try:
            return rate(member)
        except TypeError as error:  # SeqIO's own functions calculate with None
            if not isinstance(member, seqio.Task) or member.num_input_examples("train") is not None:
                raise
            raise UserError(
                "its source does not say how many examples it has; give the source "
                "num_input_examples, or the task a number"
            ) from error


def _to_number(rate: Any) -> float:
    try:
        return float(rate)
    except (TypeError, ValueError, OverflowError):
        return math.nan
