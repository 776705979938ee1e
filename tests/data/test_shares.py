"""Declared shares become exact counts, or one line that says why not."""

import math

import pytest

from speechlm_jax.data.plan import TaskRows
from speechlm_jax.data.shares import (
    PhaseSpec,
    Share,
    epochs,
    fraction,
    make_plan,
    rates_to_shares,
    rest,
)
from speechlm_jax.errors import UserError

TASKS = [
    TaskRows("text", 10_000, 1_000_000, 0),
    TaskRows("speech", 31, 0, 3_100),
    TaskRows("pairs", 14, 350, 1_050),
    TaskRows("interleaved", 734, 27_900, 45_500),
]
PAPER = {"text": fraction(0.3), "speech": epochs(1), "pairs": epochs(1), "interleaved": rest()}


def test_the_papers_mixture():
    """30% text, one epoch of both kinds of speech, the rest interleaved."""
    plan = make_plan(TASKS, [PhaseSpec("pre-training", PAPER, tokens=100_000)])
    text, speech, pairs, interleaved = plan.progress(plan.num_rows)
    assert text.tokens == 30_000 and speech.epochs == pairs.epochs == 1
    assert abs(interleaved.tokens - (100_000 - 30_000 - 3_100 - 1_400)) <= 50  # half a row
    assert 0.85 < interleaved.epochs < 0.95


@pytest.mark.parametrize("rows", [100, 101, 997])
def test_a_budget_of_rows_is_met_exactly(rows):
    shares = {"text": fraction(1 / 3), "pairs": rest(2), "interleaved": rest(1)}
    plan = make_plan(TASKS, [PhaseSpec("p", shares, rows=rows)])
    counts = dict(zip([task.name for task in TASKS], plan.phases[0].counts, strict=True))
    assert plan.num_rows == rows and abs(counts["text"] - rows / 3) < 1
    assert abs(counts["pairs"] - 2 * counts["interleaved"]) <= 2


def test_seqio_rates_are_shares():
    shares = rates_to_shares({"text": 2.0, "pairs": 6.0, "speech": 0.0})
    assert shares == {"text": fraction(0.25), "pairs": fraction(0.75)}
    plan = make_plan(TASKS, [PhaseSpec("p", shares, rows=80)])
    assert plan.phases[0].counts == (20, 0, 60, 0)


def test_epochs_alone_need_no_budget():
    plan = make_plan(TASKS, [PhaseSpec("p", {"speech": epochs(2), "pairs": epochs(0.5)})])
    assert plan.phases[0].counts == (0, 62, 7, 0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (PhaseSpec("p", {"txt": rest()}, rows=9), "did you mean 'text'"),
        (PhaseSpec("p", {"text": rest()}), "need a budget"),
        (PhaseSpec("p", {"text": rest()}, rows=9, tokens=9), "not both"),
        (PhaseSpec("p", {"text": fraction(0.5)}, rows=9), "belong to no task"),
        (PhaseSpec("p", {"text": fraction(0.9), "speech": epochs()}, rows=40), "lower them"),
    ],
)
def test_mistakes_are_named(spec, message):
    with pytest.raises(UserError, match=message):
        make_plan(TASKS, [spec])


def test_shares_are_checked():
    for kind, amount in (("fraction", 1.5), ("fraction", 0.0), ("epochs", -1.0)):
        with pytest.raises(UserError):
            Share(kind, amount)
    for kind in ("fraction", "epochs", "rest"):
        for amount in (math.nan, math.inf):
            with pytest.raises(UserError, match="must be a number above 0"):
                Share(kind, amount)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_rates_that_are_no_shares_are_refused(rate):
    for rates in ({"text": rate}, {"text": rate, "pairs": rate}, {"text": 1.0, "pairs": rate}):
        if rates != {"text": 1.0, "pairs": 0.0}:
            with pytest.raises(UserError, match="mixture rates"):
                rates_to_shares(rates)
