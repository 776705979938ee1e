"""Properties of speechlm_jax.evals.items."""

import json

import numpy as np
import pytest
from scipy.stats import beta

from speechlm_jax.errors import UserError
from speechlm_jax.evals.items import (
    Item,
    figure_from_items,
    figures_from_items,
    margin_from_items,
    read_items,
    write_items,
)


def make_items(figure, right, *, facts=None):
    return [
        Item(
            figure, "v", facts[i] if facts else "", "w", "yes", "yes" if r else "no", float(r), 1.0
        )
        for i, r in enumerate(right)
    ]


def test_figures_are_recountable_from_the_files_alone(tmp_path):
    items = make_items("qa/s2t/interleaved", [1, 1, 0, 1], facts=list("aabb"))
    items += make_items("qa/s2t/baseline", [0, 0, 0, 1], facts=list("aabb"))
    items += [Item("tokenizer/wer", "v", "", "", "a b c", "a", 2.0, 3.0)]
    items += [Item("tokenizer/wer", "v", "", "", "d", "d", 0.0, 1.0)]
    write_items(tmp_path, items)
    arms = ("interleaved", "baseline")
    figures = figures_from_items(read_items(tmp_path), arms=arms)
    assert figures == figures_from_items(items, arms=arms)
    assert "qa/s2t/margin" not in figures_from_items(items), "nothing is compared"
    for name in ("qa/s2t/interleaved", "tokenizer/wer"):
        # Recounted with nothing but json: the promise to a reader.
        rows = [json.loads(x) for p in tmp_path.glob("*.jsonl") for x in p.read_text().splitlines()]
        rows = [row for row in rows if row["figure"] == name]
        ratio = sum(r["numerator"] for r in rows) / sum(r["denominator"] for r in rows)
        assert figures[name].value == ratio
        assert figures[name].count == len(rows)
    assert figures["qa/s2t/margin"].value == 0.5
    assert "tokenizer/margin" not in figures


def test_interval_agrees_with_the_binomial_one():
    items = make_items("f", [1] * 60 + [0] * 140)
    figure = figure_from_items(items, seed=1)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 200)
    assert figure.low == pytest.approx(0.3 - half, abs=0.01)
    assert figure.high == pytest.approx(0.3 + half, abs=0.01)
    assert figure == figure_from_items(items, seed=1)


def test_items_of_one_fact_count_as_one_draw():
    right = np.repeat([1, 0, 1, 0, 1, 0, 1, 0, 1, 0], 20)
    facts = [f"fact {i}" for i in np.repeat(np.arange(10), 20)]
    by_fact = figure_from_items(make_items("f", right, facts=facts))
    by_item = figure_from_items(make_items("f", right, facts=facts), by="item")
    assert by_fact.value == by_item.value == 0.5
    assert by_fact.high - by_fact.low > 2 * (by_item.high - by_item.low)


def test_paired_margin_is_narrower_than_the_arms_where_they_agree():
    facts = [str(i) for i in range(40)]
    easy = np.arange(40) % 2
    first = make_items("q/interleaved", np.ones(40), facts=facts)
    second = make_items("q/baseline", np.ones(40), facts=facts)
    same = margin_from_items(first, second)
    assert same.value == 0 and -same.low == same.high == pytest.approx(1 - 0.025 ** (1 / 40))
    first, second = (make_items(name, easy, facts=facts) for name in ("a", "b"))
    assert margin_from_items(first, second).high < 0.1
    assert figure_from_items(first).high > 0.55


@pytest.mark.parametrize("right", [0, 1])
@pytest.mark.parametrize("facts", [1, 2, 10, 80])
def test_nothing_and_everything_have_the_interval_of_clopper_and_pearson(right, facts):
    names = [
        f"fact {i // 3}" for i in range(3 * facts)
    ]  # three voices each: facts count, not items
    figure = figure_from_items(make_items("f", [right] * len(names), facts=names))
    low, high = (beta.ppf(0.025, facts, 1), 1) if right else (0, beta.ppf(0.975, 1, facts))
    assert (figure.low, figure.high) == (pytest.approx(low), pytest.approx(high))
    assert figure.count == 3 * facts


def test_arms_that_are_always_apart_are_not_certain_to_be():
    facts = [str(i) for i in range(20)]
    first, second = make_items("a", [1] * 20, facts=facts), make_items("b", [0] * 20, facts=facts)
    margin = margin_from_items(first, second)
    assert (margin.value, margin.high) == (1, 1)
    # at worst, the facts that were not drawn go the other way
    assert margin.low == pytest.approx(2 * 0.025 ** (1 / 20) - 1)


def test_margin_refuses_arms_that_were_asked_different_facts():
    first = make_items("a", [1, 0], facts=["x", "y"])
    with pytest.raises(ValueError, match="not asked the same"):
        margin_from_items(first, make_items("b", [1, 0], facts=["x", "z"]))
    with pytest.raises(ValueError, match="not asked the same"):
        margin_from_items(first, first[:1], by="item")


def test_nothing_to_count():
    with pytest.raises(ValueError, match="no items"):
        figure_from_items([])
    with pytest.raises(ValueError, match="sum to 0"):
        figure_from_items([Item("f", "", "", "", "", "", 0.0, 0.0)])


def test_a_draw_without_denominator_is_left_out():
    items = [Item("f", "", "", "", "", "", 1.0, 2.0), Item("f", "", "", "", "", "", 0.0, 0.0)]
    figure = figure_from_items([*items, *items, Item("f", "", "", "", "", "", 2.0, 2.0)])
    assert figure.value == pytest.approx(2 / 3) and 0.5 <= figure.low < figure.high <= 1


def test_many_items_stay_in_bounded_memory():
    figure = figure_from_items(make_items("f", np.arange(30_000) % 2), resamples=50)
    assert 0.49 < figure.low < figure.high < 0.51


def test_rows_that_are_not_items_are_named(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"figure": "f"}\n')
    with pytest.raises(UserError, match="x.jsonl: row 1"):
        read_items(tmp_path)
