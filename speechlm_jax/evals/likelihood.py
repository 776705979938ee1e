"""Prompts and continuations -> the continuation that the model finds most likely."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from speechlm_jax.arrays import Float, ndarray
from speechlm_jax.nn.inference import ScoreRequest

Score = Callable[[Sequence[ScoreRequest]], Sequence[float]]
LengthRule = Literal["total", "mean"]


@dataclasses.dataclass(frozen=True)
class Choice:
    """A question to the model: which of `continuations` (ids) follows `prompt` (ids)?"""

    prompt: Sequence[int]
    continuations: tuple[Sequence[int], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Chosen:
    """Scores (nats, or nats per id) of the continuations, in their order."""

    scores: Float[ndarray, " choices"]

    @property
    def best(self) -> int:
        """Index of the likeliest continuation, the first of equals."""
        return int(np.argmax(self.scores))

    def credit(self, right: int) -> float:
        """Returns 1 if `right` alone is the likeliest, 1/n if it ties with n - 1 others, else 0."""
        top = self.scores == self.scores.max()
        return float(top[right] / top.sum())


def choose(choices: Sequence[Choice], score: Score, *, length_rule: LengthRule) -> list[Chosen]:
    """Scores every continuation of every choice, all in one call of `score`.

    Args:
      choices: choices with at least one continuation each, none empty (else ValueError).
      score: returns the total log-probability (nats) of each continuation after its prompt.
      length_rule: "total" compares log-probabilities; "mean" divides them by the number of ids, so
        that speech does not lose only because it lasts longer. The paper does not say which it
        uses.
    """
    requests = [
        ScoreRequest(prompt=choice.prompt, continuation=continuation)
        for choice in choices
        for continuation in choice.continuations
    ]
    if any(not choice.continuations for choice in choices) or any(
        not len(request.continuation) for request in requests
    ):
        raise ValueError("nothing to choose from: a continuation without ids")
    totals = np.asarray(score(requests), np.float64)
    if not np.isfinite(totals).all():
        raise ValueError("a log-probability is not finite")
    lengths = np.array([len(request.continuation) for request in requests])
    values = totals if length_rule == "total" else totals / lengths
    ends = np.cumsum([len(choice.continuations) for choice in choices])[:-1]
    return [Chosen(scores) for scores in np.split(values, ends)] if choices else []
