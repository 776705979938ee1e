"""Replies against a loop that answers each request alone, with a full forward pass for each id."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechlm_jax import config as configs
from speechlm_jax.id_set import IdSet
from speechlm_jax.nn import decoding_params, scheduler
from speechlm_jax.nn.attention import whole
from speechlm_jax.nn.cache import Turned
from speechlm_jax.nn.engine import MAX_STEPS, Engine
from speechlm_jax.nn.inference import GenerateRequest, Inference
from speechlm_jax.nn.language_model import functional
from speechlm_jax.nn.sampling import GREEDY, Sampling

LENGTH, MANY = 144, 300
ROOT = Path(__file__).parents[2]


def draw_request(random, sets):
    """A request with a mind of its own."""
    allowed = random.choice(len(sets) + 1)
    stops = random.integers(0, 320, random.integers(0, 4))
    return GenerateRequest(
        prompt=random.integers(0, 320, random.integers(1, 61)).tolist(),
        allowed=sets[allowed] if allowed < len(sets) else None,
        stops=tuple(stops.tolist()),
        max_new=int(81 ** random.random()),  # 1 to 80
        seed=int(random.integers(2**32)),
        sampling=Sampling(
            temperature=float(random.choice([0.0, 0.3, 1.0, 1.7])),
            top_p=float(random.choice([0.0, 0.5, 0.9, 1.0, 1.0])),
            top_k=int(random.choice([0, 0, 1, 5, 64, 65, 200])),
            repetition_penalty=float(random.choice([1.0, 1.0, 0.8, 1.3])),
        ),
    )


@pytest.fixture(scope="module")
def requests(some_ids):
    random = np.random.default_rng(14)
    wide = [IdSet.of(random.permutation(320)[:number].tolist()) for number in (5, 100, 300)]
    narrow = [
        some_ids,
        IdSet(((30, 50),)),
        IdSet.of(random.choice(some_ids.to_array(), 90).tolist()),
    ]
    return [draw_request(random, [*wide, *narrow]) for _ in range(MANY)]


@pytest.fixture(scope="module")
def cancel():
    """{number: ids after which it is cancelled}, of one request in six."""
    random = np.random.default_rng(15)
    return {number: int(random.integers(0, 12)) for number in range(0, MANY, 6)}


@pytest.fixture(scope="module")
def logits_after(talker, talker_params):
    """logits_after(ids): of the id that follows, by a full forward pass over all of them."""

    @jax.jit
    def run(ids, length):
        model = functional(talker).bind(talker_params)
        return model(ids[None], whole(length[None], len(ids)))[0, length - 1]

    def last(ids):
        size = next(size for size in (32, 48, 64, 80, LENGTH, 1040) if len(ids) <= size)
        return np.asarray(run(np.array([*ids, *[0] * (size - len(ids))]), np.int32(len(ids))))

    return last


@pytest.fixture(scope="module")
def next_logits(logits_after, by_definition):
    """next_logits(request, ids): of the id that follows, penalised; -inf: may not be said."""

    def masked(request, ids):
        logits = logits_after(ids)
        if request.allowed is not None:
            logits = np.where(request.allowed.mask(320), logits, -np.inf)
        return by_definition.penalised(logits, ids, request.sampling.repetition_penalty)

    return masked


@pytest.fixture(scope="module")
def alone(next_logits, by_definition):
    """alone(request): its reply."""

    def reply(request):
        ids = list(request.prompt)
        for uniform in by_definition.uniforms(request.seed, np.arange(80))[: request.max_new]:
            chosen = by_definition.choose(next_logits(request, ids), request.sampling, uniform)
            if chosen in request.stops:
                break
            ids.append(chosen)
        return ids[len(request.prompt) :]

    return reply


@pytest.fixture(scope="module")
def check(next_logits, by_definition):
    """check(requests, {number: reply}, replies, cancel): that they are equal, up to a near tie."""

    def compare(requests, got, expected, cancel=()):
        for number, reply in got.items():
            request, told = requests[number], expected[number]
            told = told[: cancel[number]] if number in cancel else told
            if reply == told:
                continue
            same = next(i for i in range(81) if reply[i : i + 1] != told[i : i + 1])
            uniform = by_definition.uniforms(request.seed, np.arange(80))[same]
            logits = next_logits(request, [*request.prompt, *told[:same]])
            assert not by_definition.is_sure(logits, request.sampling, uniform), (number, same)

    return compare


@pytest.fixture(scope="module")
def expected(requests, alone):
    replies = [alone(request) for request in requests]
    lengths = [len(reply) for reply in replies]
    assert max(lengths) > 70 and min(lengths) == 0
    return replies


def orders(seed=0):
    """As it came, backwards, and mixed."""
    return [range(MANY), range(MANY)[::-1], np.random.default_rng(seed).permutation(MANY).tolist()]


@pytest.mark.parametrize(
    ("slots", "steps", "order", "overlap"),
    [
        (1, 8, 2, True), (3, 8, 2, False), (16, 8, 0, False),
        pytest.param(3, 1, 1, True, marks=pytest.mark.slow),
        pytest.param(1, 1, 0, False, marks=pytest.mark.slow),
        pytest.param(16, 1, 2, True, marks=pytest.mark.slow),
        pytest.param(16, 8, 1, True, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_reply_is_that_of_its_request_alone(
    make_engine, answer, check, requests, expected, cancel, slots, steps, order, overlap
):
    order = orders()[order][: 100 if slots == 1 else MANY]
    got = answer(
        make_engine(slots), requests, steps=steps, overlap=overlap, order=order, cancel=cancel
    )
    check(requests, got, expected, cancel)


@pytest.mark.parametrize("steps", [5, pytest.param(8, marks=pytest.mark.slow)])
def test_a_layer_cut_to_some_ids_says_what_the_whole_would(
    make_engine, answer, check, requests, expected, cancel, some_ids, steps
):
    narrow = [
        number
        for number, request in enumerate(requests)
        if request.allowed is not None and request.allowed <= some_ids
    ]
    assert len(narrow) > MANY / 3
    engine, options = make_engine(3, cut=True), {"steps": steps, "overlap": steps == 5}
    got = answer(engine, requests, order=narrow, cancel=cancel, **options)
    check(requests, got, expected, cancel)


@jax.jit
def spoil(slots):
    """Puts NaN, and ids that nobody said, wherever no request is being answered."""
    cache = slots.cache
    end = jnp.where(slots.active, cache.filled, -1)[:, None]
    places = jnp.arange(slots.history.shape[1])

    def spoilt(x):
        if isinstance(x, Turned):
            return Turned(jnp.where((places < end)[None, :, None], x.values, jnp.nan))
        return jnp.where((places < end)[None, :, :, None], x, jnp.nan)

    cache = cache._replace(k=tuple(map(spoilt, cache.k)), v=tuple(map(spoilt, cache.v)))
    return slots._replace(cache=cache, history=jnp.where(places <= end, slots.history, 7))


@pytest.mark.parametrize("steps", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_a_slot_is_not_read_after_its_request_or_beyond_its_length(
    make_engine, answer, check, requests, expected, monkeypatch, steps
):
    engine = make_engine(3)
    advance = engine.advance

    def spoil_first(*given):
        engine._slots = spoil(engine._slots)
        return advance(*given)

    monkeypatch.setattr(engine, "advance", spoil_first)
    check(requests, answer(engine, requests, steps=steps, order=range(60)), expected)
    assert all(np.isnan(x).any() for x in jax.tree.leaves(engine._slots.cache[:2]))


def test_programs_and_transfers_of_1000_requests(
    talker, talker_params, check, requests, expected, monkeypatch
):
    random = np.random.default_rng(3)
    sets = [IdSet(((number, number + 40),)) for number in range(40)]
    short = [
        dataclasses.replace(draw_request(random, sets), max_new=int(random.integers(1, 6)))
        for _ in range(1000 - MANY)
    ]
    inference = Inference(talker, talker_params, batch_size=24, length=LENGTH)
    compiled, told = [], []

    def note(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration)

    def unpack(report):
        told.append(report)
        return scheduler_unpack(report)

    scheduler_unpack = scheduler.unpack
    monkeypatch.setattr(scheduler, "unpack", unpack)
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        with jax.transfer_guard_host_to_device("disallow"):  # but for what is put there by name
            first = inference.generate([*requests, *short])
            assert 0 < len(compiled) <= len(inference._scheduler.engine.buckets) + 2
            compiled.clear()
            assert inference.generate(short[99::-1]) == first[MANY : MANY + 100][::-1]
            assert not compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    check(requests, dict(enumerate(first[:MANY])), expected)
    assert len(told) == inference.stats.calls
    assert {report.size for report in told} == {25 * (MAX_STEPS + 1)}
    assert inference.stats.ids == sum(map(len, first)) + sum(map(len, first[MANY : MANY + 100]))


def test_long_prompts_are_read_in_parts(talker, talker_params, alone, check):
    random = np.random.default_rng(5)
    inference = Inference(talker, talker_params, batch_size=2, length=1040)
    penalised = Sampling(1.0, repetition_penalty=1.5)
    asked = [
        GenerateRequest(
            random.integers(0, 320, size).tolist(), max_new=3, seed=size, sampling=sampling
        )
        for size, sampling in ((1036, penalised), (3, GREEDY), (512, GREEDY), (513, penalised))
    ]
    got = inference.generate(asked)
    check(asked, dict(enumerate(got)), [alone(request) for request in asked])


def test_in_bfloat16_a_reply_depends_on_its_request_alone(talker, talker_params, answer, requests):
    config = dataclasses.replace(talker, dtype="bfloat16")
    engine = Engine(decoding_params.prepare(config, talker_params), slots=3, length=LENGTH)
    assert engine._slots.cache.k[0].dtype == jnp.bfloat16
    few = [n for n in range(120) if len(requests[n].prompt) <= 16]
    first = answer(engine, requests, steps=1, order=few)
    again = answer(engine, requests, steps=8, order=few[::-1], overlap=True, cancel={few[0]: 1})
    assert again.pop(few[0]) == first.pop(few[0])[:1]
    assert first == again


CHILD = """
import json, sys
import jax, numpy as np
from speechlm_jax import config as configs
from speechlm_jax.id_set import IdSet
from speechlm_jax.nn.inference import GenerateRequest, Inference
from speechlm_jax.nn.language_model import LanguageModelConfig, functional
from speechlm_jax.nn.sampling import Sampling
from speechlm_jax.sharding import MeshConfig, make_mesh

given = json.load(sys.stdin)
config = configs.from_json(LanguageModelConfig, given["config"])
leaves = np.load(given["params"])
shapes = jax.tree.structure(functional(config).shapes)
params = jax.tree.unflatten(shapes, [leaves[name] for name in leaves.files])
asked = [
    GenerateRequest(
        prompt, None if allowed is None else IdSet(tuple(map(tuple, allowed))), tuple(stops),
        max_new, seed, Sampling(*sampling),
    )
    for prompt, allowed, stops, max_new, seed, sampling in given["requests"]
]
assert len(jax.devices()) == 8
replies = []
for sizes, slots in given["meshes"]:
    mesh = make_mesh(MeshConfig(**sizes)) if sizes else None
    inference = Inference(config, params, batch_size=slots, length=144, mesh=mesh)
    replies.append(inference.generate(asked))
print(json.dumps(replies))
"""


def test_another_process_and_8_devices_say_the_same(
    talker, talker_params, check, alone, requests, tmp_path
):
    meshes = [(None, 2), ({"fsdp": 8}, 16), ({"replica": 2, "fsdp": 2, "tensor": 2}, 5)]
    few = [r for r in requests if len(r.prompt) <= 16 and r.max_new < 30][:12]
    leaves = jax.tree.leaves(talker_params)
    np.savez(tmp_path / "params.npz", **{f"{i:03}": leaf for i, leaf in enumerate(leaves)})
    given = {
        "config": configs.to_json(talker),
        "params": str(tmp_path / "params.npz"),
        "meshes": meshes,
        "requests": [
            [r.prompt, r.allowed and r.allowed.ranges, r.stops, r.max_new, r.seed,
             dataclasses.astuple(r.sampling)]
            for r in few
        ],
    }  # fmt: skip
    flags = os.environ["XLA_FLAGS"].replace("device_count=4", "device_count=8")
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps(given), text=True, cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags}, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    expected = [alone(request) for request in few]
    for replies in json.loads(done.stdout):
        assert len(replies) == len(few)
        check(few, dict(enumerate(replies)), expected)
