"""The plan is a bijection onto epochs of rows, with exact counts, at any scale."""

import numpy as np
import pytest

from speechlm_jax.data import permutation
from speechlm_jax.data.plan import MAX_PHASE_ROWS, MixturePlan, Phase, TaskRows
from speechlm_jax.errors import UserError

TASKS = (TaskRows("a", 7, 70, 0, "f1"), TaskRows("b", 30, 0, 300), TaskRows("c", 11, 50, 60))
PLAN = MixturePlan(TASKS, (Phase("main", (60, 30, 111)), Phase("anneal", (25, 0, 25))), seed=3)


@pytest.mark.parametrize("seed", range(6))
def test_each_phase_has_exactly_its_counts_evenly_spread(seed):
    rng = np.random.default_rng(seed)
    counts = tuple(int(c) for c in rng.integers(0, 200, rng.integers(1, 6)))
    tasks = tuple(TaskRows(f"t{k}", int(rng.integers(1, 90)), 10, 0) for k in range(len(counts)))
    plan = MixturePlan(tasks, (Phase("p", counts),), seed)
    task = plan.rows(np.arange(plan.num_rows)).task
    assert np.bincount(task, minlength=len(counts)).tolist() == list(counts)
    for k, count in enumerate(counts):
        # Nested lines: each level adds less than one row of deviation.
        expected = np.arange(1, len(task) + 1) * count / max(len(task), 1)
        assert np.abs(np.cumsum(task == k) - expected).max(initial=0) <= 1 + k


def indices(plan: MixturePlan, task: int) -> list[list[int]]:
    """Which rows of a task each phase visits, in order."""
    rows = plan.rows(np.arange(plan.num_rows))
    phase = np.repeat(np.arange(len(plan.phases)), [phase.rows for phase in plan.phases])
    return [
        rows.index[(rows.task == task) & (phase == i)].tolist() for i in range(len(plan.phases))
    ]


@pytest.mark.parametrize("seed", range(20))
def test_every_epoch_of_every_phase_visits_every_row_once(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 40, 3)
    tasks = tuple(TaskRows(f"t{k}", int(size), 10, 0) for k, size in enumerate(sizes))
    phases = [Phase(f"p{i}", tuple(rng.integers(0, 100, 3).tolist())) for i in range(4)]
    phases += [Phase("whole", tuple(sizes.tolist()))]  # one epoch of each, wherever it stands
    plan = MixturePlan(tasks, tuple(phases), seed)
    for k, size in enumerate(sizes.tolist()):
        for visited in indices(plan, k):
            for at in range(0, len(visited), size):
                epoch = visited[at : at + size]
                assert len(set(epoch)) == len(epoch)


def test_phases_take_up_what_was_not_yet_seen():
    """Of a hundred rows forty are seen: an epoch of the next phase begins with the others."""
    task = (TaskRows("a", 100, 1, 0),)
    plan = MixturePlan(task, (Phase("p", (40,)), Phase("q", (100,)), Phase("r", (60,))))
    first, second, _ = indices(plan, 0)
    assert sorted(first + second[:60]) == sorted(second) == list(range(100))
    thirds = MixturePlan(task, tuple(Phase(n, (c,)) for n, c in (("p", 30), ("q", 30), ("r", 40))))
    assert sorted(sum(indices(thirds, 0), [])) == list(range(100))


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_a_plan_of_one_phase_is_that_of_earlier_versions(seed):
    plan = MixturePlan(TASKS, (Phase("p", (60, 90, 111)),), seed)
    for k, task in enumerate(TASKS):
        epoch, place = np.divmod(np.arange(plan.phases[0].counts[k]), task.rows)
        key = permutation.make_key(seed, task.name)
        order = permutation.permute(place, size=task.rows, key=key, tweaks=epoch)
        assert indices(plan, k) == [order.tolist()]
    assert PLAN.fingerprint == "b117dfdb96f2c4a1"


def test_row_is_rows():
    rows = PLAN.rows(np.arange(PLAN.num_rows))
    for number in (0, 1, 57, 200, 201, PLAN.num_rows - 1):
        row = PLAN.row(number)
        at = (rows.task[number], rows.epoch[number], rows.index[number])
        assert (row.task, row.epoch, row.index) == at
    for outside in (-1, PLAN.num_rows):
        with pytest.raises(IndexError):
            PLAN.row(outside)


def test_order_of_a_task_depends_on_its_name_and_the_seed_alone():
    def order(plan: MixturePlan, name: str) -> list[int]:
        rows = plan.rows(np.arange(plan.num_rows))
        return rows.index[rows.task == [t.name for t in plan.tasks].index(name)].tolist()

    other = MixturePlan(TASKS[::-1], (Phase("x", (40, 30, 60)),), seed=3)
    assert order(other, "b") == order(PLAN, "b")
    assert order(MixturePlan(TASKS, PLAN.phases, seed=4), "b") != order(PLAN, "b")


def test_progress_counts_what_was_dealt():
    task = PLAN.rows(np.arange(PLAN.num_rows)).task
    for seen in (0, 1, 99, 201, 230, PLAN.num_rows):
        progress = PLAN.progress(seen)
        assert [p.rows for p in progress] == np.bincount(task[:seen], minlength=3).tolist()
        assert [p.epochs for p in progress] == [
            p.rows / t.rows for p, t in zip(progress, TASKS, strict=True)
        ]
    assert PLAN.progress(PLAN.num_rows)[0].tokens == 85 * 10
    assert (PLAN.phase_at(200), PLAN.phase_at(201)) == ("main", "anneal")


def test_json_and_fingerprint():
    again = MixturePlan.from_json(PLAN.to_json())
    assert again == PLAN and again.fingerprint == PLAN.fingerprint
    assert MixturePlan(TASKS, PLAN.phases, seed=4).fingerprint != PLAN.fingerprint


def test_a_trillion_tokens():
    """1T tokens at 512 a row: two billion rows, no loop over them."""
    counts = (600_000_000, 60_000_000, 1_340_000_000)
    tasks = tuple(
        TaskRows(n, r, 1, 1)
        for n, r in [("t", 9_000_000_000), ("s", 60_000_000), ("i", 1_500_000_000)]
    )
    plan = MixturePlan(tasks, (Phase("pre-training", counts),))
    rng = np.random.default_rng(0)
    numbers = np.concatenate([rng.integers(0, plan.num_rows, 20_000), [0, plan.num_rows - 1]])
    rows = plan.rows(numbers)
    # The rank that a row has among its task's rows is what was dealt before it.
    for number, k in zip(numbers[-40:].tolist(), rows.task[-40:].tolist(), strict=True):
        before, after = plan.progress(number), plan.progress(number + 1)
        assert [b.rows - a.rows for a, b in zip(before, after, strict=True)] == [
            int(k == j) for j in range(3)
        ]
    assert [p.rows for p in plan.progress(plan.num_rows)] == list(counts)
    assert (
        rows.index < np.array([t.rows for t in tasks])[rows.task]
    ).all() and not rows.epoch.any()
    shares = np.bincount(rows.task) / len(numbers)
    np.testing.assert_allclose(shares, np.array(counts) / plan.num_rows, atol=0.015)


def test_bad_plans_are_refused():
    with pytest.raises(UserError, match="has no rows"):
        MixturePlan((TaskRows("a", 0, 0, 0),), (Phase("p", (1,)),))
    with pytest.raises(UserError, match="split it"):
        MixturePlan((TaskRows("a", 1, 1, 0),), (Phase("p", (MAX_PHASE_ROWS + 1,)),))
