"""Choices against their definition in NumPy: which ids, how often, and by which number."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy import stats

from speechlm_jax.errors import UserError
from speechlm_jax.nn import sampling
from speechlm_jax.nn.sampling import BLOCK, CANDIDATES, GREEDY, Sampling, Settings

SIZE, DRAWS = 2 * BLOCK + 44, 20_000
LAST = 1 - 2**-24  # the largest number by which an id is drawn
ROWS = 640  # of a call
CHOOSE = jax.jit(sampling.choose)
PENALISE = jax.jit(
    lambda logits, penalty, said, used: sampling.penalise(logits, penalty, lambda: said, used)
)
MIXED = [
    Sampling(temperature, top_p, top_k)
    for temperature in (0.0, 0.4, 1.0, 2.0)
    for top_p in (0.0, 0.5, 0.95, 1.0)
    for top_k in (0, 1, 7, CANDIDATES, CANDIDATES + 1, SIZE, SIZE + 9)
]


def settings_of(samplings):
    columns = zip(*map(dataclasses.astuple, samplings), strict=True)
    dtypes = (np.float32, np.float32, np.int32, np.float32)
    return Settings(*(np.array(x, dtype) for x, dtype in zip(columns, dtypes, strict=True)))


def chosen(logits, uniform, samplings, used=None, choose=CHOOSE):
    """The choice for each row; one row of logits, number or sampling stands for all."""
    rows = max(np.size(uniform), len(samplings), len(np.atleast_2d(logits)))
    logits = np.broadcast_to(np.asarray(logits, np.float32), (rows, np.shape(logits)[-1]))
    uniform = np.broadcast_to(np.asarray(uniform, np.float32), rows)
    settings = settings_of(list(samplings) * (rows if len(samplings) == 1 else 1))
    used = np.ones(rows, bool) if used is None else used
    parts = []
    for first in range(0, rows, ROWS):  # few shapes, few programs
        part = [x[first : first + ROWS] for x in (logits, uniform, *settings, used)]
        short = ROWS - len(part[0])
        part = [np.pad(x, [(0, short), (0, 0)][: x.ndim]) for x in part]
        choice = choose(*part[:2], Settings(*part[2:-1]), part[-1])
        parts.append([np.asarray(x)[: ROWS - short] for x in choice])
    return [np.concatenate(x) for x in zip(*parts, strict=True)]


def some_logits(rows=None, *, allowed=0.6, spread=2.0, seed=0):
    """Random logits, part of them forbidden."""
    random = np.random.default_rng(seed)
    shape = SIZE if rows is None else (rows, SIZE)
    logits = (spread * random.normal(size=shape)).astype(np.float32)
    return np.where(random.random(shape) < allowed, logits, -np.inf).astype(np.float32)


def test_rows_of_all_settings_in_one_call_choose_by_the_definition(by_definition):
    samplings = MIXED * 5
    logits = some_logits(len(samplings))
    uniform = np.random.default_rng(1).random(len(samplings)).astype(np.float32)
    got, _ = chosen(logits, uniform, samplings)
    sure = 0
    for place, row, u, one in zip(got, logits, uniform, samplings, strict=True):
        if by_definition.is_sure(row, one, u, by=1e-5):
            assert place == by_definition.choose(row, one, u)
            sure += 1
    assert sure > 0.98 * len(samplings)


@pytest.mark.parametrize(
    "one",
    [
        Sampling(0.7), Sampling(1.0, top_p=0.8), Sampling(0.7, top_p=0.9, top_k=40),
        Sampling(3.0, top_p=0.95),
    ],
)  # fmt: skip
def test_ids_are_drawn_as_often_as_they_should_be(one, by_definition):
    logits = some_logits(allowed=0.3)
    uniform = np.random.default_rng(2).random(DRAWS)
    counts = np.bincount(chosen(logits, uniform, [one])[0], minlength=SIZE)
    check_counts(counts, by_definition.chances(logits, one))


def check_counts(counts, chance):
    """Chi-square of the counts at p > 0.001; ids of less than 5 expected draws together."""
    expected = chance * counts.sum()
    assert not counts[expected == 0].any()
    rare = expected < 5
    seen = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    assert stats.chisquare(seen, wanted).pvalue > 0.001


@pytest.mark.parametrize("axis", ["seeds", "numbers"])
def test_numbers_of_requests_and_of_steps_are_uniform(axis, by_definition):
    many = np.arange(DRAWS)
    uniform = by_definition.uniforms(*((many, 5) if axis == "seeds" else (7, many)))
    assert uniform.min() >= 0 and uniform.max() < 1
    assert stats.kstest(uniform, "uniform").pvalue > 0.001


def test_of_equal_logits_the_smaller_ids_are_kept():
    logits = np.full(SIZE, -np.inf)
    tied = [9, 40, BLOCK + 3, SIZE - 1]
    logits[tied], logits[50] = 1.0, 0.0
    uniform = np.arange(40) / 40
    for one, kept in (
        (GREEDY, tied[:1]),
        (Sampling(1.0, top_k=1), tied[:1]),
        (Sampling(1.0, top_p=0.0), tied[:1]),
        (Sampling(1.0, top_k=3), tied[:3]),
        (Sampling(1e-2, top_p=0.45), tied[:2]),
    ):
        got = chosen(logits, uniform, [one])[0]
        assert sorted(set(got.tolist())) == kept
        # in their own order, and shares of the line are as long
        assert (np.diff(got) >= 0).all() and len(set(np.unique(got, return_counts=True)[1])) <= 2


def test_greedy_does_not_ask_what_is_kept():
    logits = some_logits(20)
    for one in (GREEDY, Sampling(0.0, top_p=0.5, top_k=3), Sampling(1e-7)):
        got, searched = chosen(logits, LAST, [one])
        np.testing.assert_array_equal(got, np.argmax(logits, axis=-1))
        assert not searched.any()


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1e-3])
def test_the_colder_the_greedier(temperature):
    logits = 30 * some_logits(20)
    np.testing.assert_array_equal(
        chosen(logits, 0.5, [Sampling(temperature)])[0], np.argmax(logits, axis=-1)
    )


def test_only_a_nucleus_beyond_the_candidates_is_searched_among_all():
    flat, peaked = np.zeros(SIZE), -np.arange(SIZE, dtype=float)
    wide = [Sampling(1.0, top_p=0.9), Sampling(1.0, top_k=CANDIDATES + 1)]
    few = [Sampling(1.0, top_p=0.9, top_k=CANDIDATES), Sampling(1.0, top_k=CANDIDATES)]
    assert chosen(flat, 0.5, wide)[1].all()
    assert not chosen(flat, 0.5, few)[1].any()
    assert not chosen(peaked, 0.5, [wide[0], *few])[1].any()
    assert not chosen(flat, 0.5, [Sampling(1.0), GREEDY])[1].any()
    unused = np.array([False, True])
    assert chosen(flat, 0.5, wide, unused)[1].tolist() == [False, True]


def test_candidates_and_a_search_among_all_choose_alike(monkeypatch):
    samplings = MIXED * 3
    logits = some_logits(len(samplings), spread=4.0)
    uniform = np.random.default_rng(3).random(len(samplings))
    got, searched = chosen(logits, uniform, samplings)
    monkeypatch.setattr(sampling, "CANDIDATES", SIZE)
    anew = jax.jit(lambda *given: sampling.choose(*given))
    every, _ = chosen(logits, uniform, samplings, choose=anew)
    np.testing.assert_array_equal(got, every)
    assert 0 < searched.sum() < len(samplings)


def test_a_neighbour_that_is_searched_changes_nothing():
    samplings, random = MIXED, np.random.default_rng(4)
    logits, uniform = some_logits(len(samplings)), random.random(len(samplings))
    together = chosen(logits, uniform, samplings)[0]
    for _ in range(10):
        used = random.random(len(samplings)) < 0.03
        alone = chosen(logits, uniform, samplings, used)[0]
        np.testing.assert_array_equal(alone[used], together[used])


@pytest.mark.parametrize("one", [Sampling(1.0), Sampling(1.0, top_p=0.999), Sampling(1.0, top_k=9)])
def test_the_smallest_and_the_largest_number_draw_ids_that_may_be_said(one, by_definition):
    for allowed in ([SIZE - 1], [0], [5, BLOCK + 1], [BLOCK - 1, 2 * BLOCK], range(40, SIZE - 40)):
        logits = np.full(SIZE, -np.inf)
        logits[list(allowed)] = 0.0
        real = np.flatnonzero(by_definition.chances(logits, one))
        assert chosen(logits, [0.0, LAST], [one])[0].tolist() == [real[0], real[-1]]


@pytest.mark.parametrize("size", [SIZE, 2000, 40_000])
def test_no_id_of_chance_0_is_drawn_at_the_edge_of_a_block(size):
    random = np.random.default_rng(5)
    blocks = np.repeat(random.permutation(-(-size // BLOCK)) % 2 == 1, BLOCK)[:size]
    allowed = blocks & (random.random(size) < 0.3)
    logits = np.where(allowed, random.normal(size=size), -np.inf)
    sums = np.cumsum(np.exp(np.where(allowed, logits, -np.inf)))
    edges = np.unique(sums[BLOCK - 1 :: BLOCK] / sums[-1])
    near = np.floor(edges * 2**24) + np.arange(-2, 3)[:, None]
    near = random.permutation(np.clip(near, 0, 2**24 - 1).ravel())[:99] / 2**24
    assert allowed[chosen(logits, near, [Sampling(1.0)])[0]].all()


def test_an_id_that_was_said_is_penalised_once(by_definition):
    random = np.random.default_rng(6)
    logits = some_logits(4)
    said = random.integers(0, SIZE, (4, 30))
    said[:, 20:] = said[:, :10]
    given = np.where(np.arange(30) < np.array([30, 12, 1, 0])[:, None], said, SIZE)
    penalty = np.array([1.3, 0.7, 2.0, 1.5], np.float32)
    got = PENALISE(logits, penalty, given.astype(np.int32), np.ones(4, bool))
    for row, factor, ids, mine in zip(logits, penalty, given, got, strict=True):
        expected = by_definition.penalised(row, ids[ids < SIZE], factor)
        np.testing.assert_allclose(mine, expected, rtol=1e-6)


def test_a_penalty_of_1_changes_no_bit():
    logits = some_logits(3)
    said = np.tile(np.arange(SIZE, dtype=np.int32), (3, 1))
    for used, penalty in ((np.ones(3, bool), [1, 1, 1.5]), (np.array([1, 1, 0], bool), [1, 1, 2])):
        got = PENALISE(logits, np.array(penalty, np.float32), said, used)
        np.testing.assert_array_equal(got[:2], logits[:2])


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1}, {"temperature": float("nan")}, {"temperature": float("inf")},
        {"top_p": -0.1}, {"top_p": 1.1}, {"top_p": float("nan")}, {"top_k": -1},
        {"top_k": 2**40}, {"repetition_penalty": 0.0}, {"repetition_penalty": float("inf")},
    ],
)  # fmt: skip
def test_a_setting_without_a_meaning_is_refused_by_name(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong)
