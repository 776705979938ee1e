"""Properties of speechlm_jax.evals.likelihood."""

import numpy as np
import pytest

from speechlm_jax.evals.likelihood import Choice, Chosen, choose


def unigram(requests):
    """Each id n costs n nats: a model with a known answer."""
    return [-float(sum(request.continuation)) for request in requests]


def test_length_rules_differ_and_each_is_its_definition():
    choices = [Choice([9], ([1, 1, 1], [2])), Choice([9], ([5], [4], [6]))]
    total = choose(choices, unigram, length_rule="total")
    mean = choose(choices, unigram, length_rule="mean")
    assert [c.scores.tolist() for c in total] == [[-3, -2], [-5, -4, -6]]
    assert [c.scores.tolist() for c in mean] == [[-1, -2], [-5, -4, -6]]
    assert [c.best for c in total] == [1, 1]
    assert [c.best for c in mean] == [0, 1]


def test_credit_is_shared_by_ties_and_sums_to_one():
    chosen = Chosen(np.array([-1.0, -2.0, -1.0]))
    assert [chosen.credit(i) for i in range(3)] == [0.5, 0.0, 0.5]
    assert chosen.best == 0


def test_all_requests_in_one_call():
    calls = []

    def score(requests):
        calls.append(len(requests))
        return unigram(requests)

    choose([Choice([1], ([1], [2]))] * 3, score, length_rule="mean")
    assert calls == [6]
    assert choose([], unigram, length_rule="mean") == []


def test_bad_choices():
    with pytest.raises(ValueError, match="nothing to choose"):
        choose([Choice([1], ([1], []))], unigram, length_rule="mean")
    with pytest.raises(ValueError, match="not finite"):
        choose([Choice([1], ([1],))], lambda r: [float("nan")], length_rule="mean")
