"""Where requests go and when: refills, rules, and how many steps a call has."""

import dataclasses

import numpy as np
import pytest

from speechlm_jax.id_set import IdSet
from speechlm_jax.nn import scheduler
from speechlm_jax.nn.engine import MAX_STEPS
from speechlm_jax.nn.inference import GenerateRequest
from speechlm_jax.nn.sampling import Sampling
from speechlm_jax.nn.scheduler import HOST_SHARE, Pace

SAMPLING = Sampling(temperature=1.0)


def some_requests(number, *, limit=12, seed=0):
    """Requests with a set of their own each."""
    random = np.random.default_rng(seed)
    return [
        GenerateRequest(
            random.integers(0, 320, random.integers(1, 17)).tolist(),
            allowed=IdSet(((i, i + 50),)),
            stops=(i + 7,),
            max_new=int(random.integers(1, limit + 1)),
            seed=i,
            sampling=SAMPLING,
        )
        for i in range(number)
    ]


@pytest.mark.parametrize("most", [1, 2, 16])
@pytest.mark.parametrize("overlap", [False, True])
def test_more_rules_than_the_table_has_wait_for_a_row(
    make_engine, answer, monkeypatch, most, overlap
):
    requests = some_requests(40)
    expected = answer(make_engine(3), requests)
    monkeypatch.setattr(scheduler, "RULES", most)
    engine = make_engine(16)
    written, set_rule = [], engine.set_rule

    def note(row, *given):
        written.append(row)
        set_rule(row, *given)

    monkeypatch.setattr(engine, "set_rule", note)
    assert answer(engine, requests, steps=4, overlap=overlap) == expected
    assert set(written) == set(range(most)) and len(written) == 40


def test_requests_of_one_rule_share_its_row(make_engine, answer, monkeypatch):
    requests = [
        dataclasses.replace(
            request,
            allowed=IdSet(((0, 90), (95, 96 + i % 2))),
            stops=(8, 9)[:: 1 - 2 * (i % 3 == 0)],
        )
        for i, request in enumerate(some_requests(30))
    ]
    engine, written = make_engine(16), []
    set_rule = engine.set_rule
    monkeypatch.setattr(engine, "set_rule", lambda *given: (written.append(1), set_rule(*given)))
    answer(engine, requests)
    assert len(written) == 2


@pytest.mark.parametrize("steps", [1, 8, MAX_STEPS])
def test_slots_are_refilled_while_others_go_on(make_engine, answer, monkeypatch, steps):
    """One long reply in ten holds up nobody."""
    requests = [
        dataclasses.replace(request, stops=(), max_new=100 if i % 10 == 0 else request.max_new)
        for i, request in enumerate(some_requests(60))
    ]
    seen = []

    class Watched(scheduler.Scheduler):
        def __init__(self, *given, **options):
            super().__init__(*given, **options)
            seen.append(self.stats)

    engine = make_engine(3)
    made = sum(request.max_new for request in requests)
    jobs = scheduler.Scheduler(engine, steps_per_call=steps)
    from speechlm_jax.nn.inference import make_job
    from speechlm_jax.nn.sampling import GREEDY

    run = jobs.run(
        [
            make_job(i, r, sampling=GREEDY, vocab_size=320, sayable=IdSet(((0, 320),)), length=144)
            for i, r in enumerate(requests)
        ]
    )
    assert len(list(run)) == made == jobs.stats.ids == jobs.stats.busy
    assert jobs.stats.busy > 0.85 * jobs.stats.slot_steps
    assert jobs.stats.steps < 1.2 * made / 3
    print(jobs.stats)


def test_steps_of_a_call_keep_the_hosts_share_small():
    for host, step in ((1e-3, 1e-3), (1e-3, 2e-2), (1e-5, 1e-3), (1e-4, 5e-4)):
        pace = Pace(None)
        assert pace.steps == 1
        for _ in range(40):
            pace.saw(host=host, device=step * pace.steps, steps=pace.steps)
        assert 1 <= pace.steps <= MAX_STEPS
        taken = host / (step * pace.steps)
        assert taken <= HOST_SHARE or pace.steps == MAX_STEPS
        assert pace.steps == 1 or taken > HOST_SHARE / 3 or pace.steps == MAX_STEPS
    assert Pace(5).steps == 5
