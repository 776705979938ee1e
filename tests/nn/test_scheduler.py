"""Where requests go and when: refills, rules, and how many steps a call has."""

import dataclasses

import numpy as np
import pytest

from speechlm_jax.id_set import IdSet
from speechlm_jax.nn import scheduler
from speechlm_jax.nn.engine import MAX_STEPS
from speechlm_jax.nn.inference import GenerateRequest, Inference
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
            request, allowed=IdSet(((0, 90 + i % 2),)), stops=((8, 9), (9, 8, 8))[i % 3 == 0]
        )
        for i, request in enumerate(some_requests(30))
    ]
    engine, written = make_engine(16), []
    set_rule = engine.set_rule
    monkeypatch.setattr(engine, "set_rule", lambda *given: written.append(set_rule(*given)))
    answer(engine, requests)
    assert len(written) == 2


@pytest.mark.parametrize("steps", [1, MAX_STEPS])
def test_a_long_reply_holds_up_nobody(make_engine, schedule, steps):
    requests = [
        dataclasses.replace(request, stops=(), max_new=100 if i % 10 == 0 else request.max_new)
        for i, request in enumerate(some_requests(60))
    ]
    made = sum(request.max_new for request in requests)
    scheduler, stream = schedule(make_engine(3), requests, steps=steps)
    assert len(list(stream)) == made
    stats = scheduler.stats
    assert stats.ids == stats.busy == made
    assert stats.slot_steps == 3 * stats.steps
    assert stats.busy > 0.9 * stats.slot_steps
    assert 0 < stats.host_seconds < stats.seconds


def test_who_waits_for_nobody_runs_to_the_end_of_its_call(make_engine, schedule):
    """A call ends early only where there is something to put into the slot that became free."""
    requests = [
        dataclasses.replace(request, stops=(), max_new=number)
        for request, number in zip(some_requests(3), (3, 9, 20), strict=True)
    ]
    scheduler, stream = schedule(make_engine(3), requests, steps=MAX_STEPS)
    assert len(list(stream)) == 32
    assert scheduler.stats.calls == 1 and scheduler.stats.steps == 20


def test_a_session_with_a_slot_does_not_wait_for_a_free_one(talker, talker_params):
    inference = Inference(talker, talker_params, batch_size=3, length=256, steps_per_call=1)
    long = [dataclasses.replace(r, stops=(), max_new=60) for r in some_requests(4)]
    with inference.session() as session:
        mine = dataclasses.replace(long[0], session=session)
        inference.generate([mine])
        numbers = [number for number, _ in inference.generate_stream([*long[1:], mine])]
    assert numbers.index(3) < 6, "it is begun with the first"
    assert numbers.index(2) > 60, "who comes later waits"


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


def test_slots_that_say_other_ids_are_named(talker, talker_params, caplog, monkeypatch):
    inference = Inference(talker, talker_params, batch_size=3, length=144)
    inference.generate(some_requests(3))
    slots = inference._scheduler
    everything = IdSet(((0, talker.vocab_size),))
    assert slots.slots_agree(everything) and not caplog.records
    unpack = scheduler.unpack

    def flip(report):
        found = unpack(report)
        ids = np.array(found.ids)
        ids[2, ids[2] >= 0] ^= 1
        return found._replace(ids=ids)

    monkeypatch.setattr(scheduler, "unpack", flip)
    assert not slots.slots_agree(everything)
    assert "slots [2] say other ids than the rest" in caplog.text
