"""Properties of speechlm_jax.evals.abx."""

import itertools

import librosa
import numpy as np
import pytest

from speechlm_jax.evals.abx import (
    SpokenWord,
    abx_items,
    angular_distances,
    dtw_distance,
    edit_distance,
    make_distance,
    triples,
)
from speechlm_jax.evals.items import figure_from_items


def make_words(codes_of, *, words=8, voices=4):
    return [
        SpokenWord(f"word{w}", f"voice{v}", np.asarray(codes_of(w, v)))
        for w in range(words)
        for v in range(voices)
    ]


def test_codes_that_name_words_make_no_error_and_codes_of_voices_only_errors():
    labels = make_words(lambda w, v: [w, w, w])
    voices = make_words(lambda w, v: [v, v])
    for name in ("edit", "dtw"):
        distance = make_distance(name, np.eye(8))
        assert figure_from_items(abx_items("abx", labels, distance=distance)).value == 0
        # A and B share the voice, so both are equally far from X: a tie.
        assert figure_from_items(abx_items("abx", voices, distance=distance)).value == 0.5


def test_noise_is_at_chance():
    rng = np.random.default_rng(0)
    values = []
    for _ in range(5):
        noise = make_words(lambda w, v: rng.integers(0, 50, 6))
        distance = make_distance("dtw", rng.normal(size=(50, 4)))
        values.append(figure_from_items(abx_items("abx", noise, distance=distance)).value)
    assert abs(np.mean(values) - 0.5) < 3 * 0.03 / np.sqrt(5)  # 0.03: spread of one such test


def test_triples_are_those_of_the_definition():
    words = make_words(lambda w, v: [0], words=3, voices=3)
    expected = sum(
        a.word == x.word and a.voice != x.voice and b.voice == a.voice and b.word != a.word
        for a, b, x in itertools.product(words, repeat=3)
    )
    assert len(triples(words)) == expected == 3 * 3 * 2 * 2
    few = triples(words, limit=10, seed=1)
    assert len(set(few)) == 10
    with pytest.raises(ValueError, match="two words"):
        triples(words[:3])


def test_edit_distance():
    assert edit_distance(np.array([1, 2, 3]), np.array([1, 3])) == pytest.approx(1 / 3)
    assert edit_distance(np.array([12]), np.array([1, 2])) == 1
    assert edit_distance(np.array([], int), np.array([], int)) == 0


def test_angles():
    angles = angular_distances(np.array([[1.0, 0], [0, 2], [-3, 0]]))
    np.testing.assert_allclose(angles[0], [0, 0.5, 1])


def test_dtw_cost_equals_librosas():
    rng = np.random.default_rng(0)
    for _ in range(10):
        costs = rng.uniform(size=rng.integers(1, 7, 2))
        table, path = librosa.sequence.dtw(C=costs)
        assert dtw_distance(costs) == pytest.approx(table[-1, -1] / len(path))


def test_dtw_forgives_tempo():
    slow, fast, other = np.array([1, 1, 1, 2, 2]), np.array([1, 2]), np.array([2, 1])
    distance = make_distance("dtw", np.eye(3))
    assert distance(slow, fast) == 0
    assert distance(slow, other) > 0
    assert distance(slow, np.array([], int)) == 1
