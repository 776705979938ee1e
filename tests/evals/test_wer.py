"""Properties of speechlm_jax.evals.wer."""

import numpy as np
import pytest

from speechlm_jax.evals.items import figure_from_items
from speechlm_jax.evals.wer import Reading, entity_errors, entity_wer_items, wer_items, word_errors


def numpy_edit_distance(first, second):
    table = np.add.outer(np.arange(len(first) + 1), np.arange(len(second) + 1))
    for i, a in enumerate(first, 1):
        for j, b in enumerate(second, 1):
            table[i, j] = min(
                table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a != b)
            )
    return table[-1, -1]


def test_errors_equal_the_edit_distance_and_the_figure_their_ratio():
    rng = np.random.default_rng(0)
    readings = []
    for _ in range(40):
        said, heard = (list(rng.choice(list("abcd"), rng.integers(0, 8))) for _ in range(2))
        readings.append(Reading(reference=" ".join(said), hypothesis=" ".join(heard)))
        errors = word_errors(readings[-1].reference, readings[-1].hypothesis)
        assert (errors.errors, errors.words) == (numpy_edit_distance(said, heard), len(said))
    total = sum(numpy_edit_distance(r.reference.split(), r.hypothesis.split()) for r in readings)
    figure = figure_from_items(wer_items("wer", readings))
    assert figure.value == total / sum(len(r.reference.split()) for r in readings)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors", "words"),
    [
        ("anna lives in paris", "anna lives in paris", 0, 2),
        ("anna lives in paris", "anna live on paris", 0, 2),  # others' errors do not count
        ("anna lives in paris", "anna lives in rome", 1, 2),  # substituted
        ("anna lives in paris", "anna lives in", 1, 2),  # deleted
        ("anna lives in paris", "anna rome lives in paris", 1, 2),  # inserted
        ("anna lives in paris", "anna rome in paris", 0, 2),  # "lives" misheard: its error
        ("lives in", "lives in rome", 1, 0),
        ("anna", "", 1, 1),
        ("Anna!", "anna", 0, 1),
    ],
)
def test_entity_rule(reference, hypothesis, errors, words):
    found = entity_errors(reference, hypothesis, {"anna", "paris", "rome"})
    assert (found.errors, found.words) == (errors, words)


def test_entity_items_leave_out_what_holds_no_entity():
    readings = [Reading("in the", "in"), Reading("anna", "anna"), Reading("in", "in anna")]
    items = entity_wer_items("e", readings, {"Anna"})
    assert [item.reference for item in items] == ["anna", "in"]
    assert figure_from_items(items).value == 1.0


def test_items_carry_who_and_what():
    item = wer_items("wer", [Reading("a b", "a", voice="v", fact="f", wording="w")])[0]
    assert (item.voice, item.fact, item.wording) == ("v", "f", "w")
    assert (item.numerator, item.denominator) == (1.0, 2.0)
