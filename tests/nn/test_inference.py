"""Lists of requests, streams, dialogues and scores, against the same asked in a plainer way."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from speechlm_jax.errors import UserError
from speechlm_jax.id_set import IdSet
from speechlm_jax.nn.attention import whole
from speechlm_jax.nn.inference import GenerateRequest, Inference, ScoreRequest
from speechlm_jax.nn.sampling import Sampling

LENGTH = 144
SAMPLING = Sampling(temperature=1.0, repetition_penalty=1.3)


def make(talker, talker_params, *, overlap=False, **options):
    options = {"batch_size": 3, "length": LENGTH, **options}
    inference = Inference(talker, talker_params, **options)
    if overlap:  # as on an accelerator
        inference._ready([])
        inference._scheduler._lookahead = 1
    return inference


@pytest.fixture(scope="module")
def plain(talker, talker_params):
    """Answers without sessions; none of its slots is ever held."""
    return make(talker, talker_params)


@pytest.fixture(params=[(1, False), (5, True)], ids=["step", "steps_overlapping"])
def inference(request, talker, talker_params):
    """With slots of its own, by so many steps a call."""
    steps, overlap = request.param
    return make(talker, talker_params, steps_per_call=steps, overlap=overlap)


def ids_of(seed, number):
    return np.random.default_rng(seed).integers(0, 320, number).tolist()


def asked(number=7, **changes):
    """Requests of several lengths."""
    return [
        GenerateRequest(ids_of(i, 1 + 3 * i % 8), max_new=4 + i, seed=i, sampling=SAMPLING)
        for i in range(number)
    ]


def test_replies_come_in_order_and_keep_to_what_is_allowed(plain):
    even = IdSet.of(range(0, 320, 2))
    requests = [
        dataclasses.replace(request, allowed=even if number % 2 else None, stops=(4,))
        for number, request in enumerate(asked())
    ]
    replies = plain.generate(requests)
    assert plain.generate(requests[::-1]) == replies[::-1]
    assert plain.generate(requests[3:4]) == replies[3:4]
    for request, reply in zip(requests, replies, strict=True):
        assert len(reply) <= request.max_new and 4 not in reply
        assert request.allowed is None or all(number in even for number in reply)


def test_a_stop_ends_its_reply_and_is_no_part_of_it(plain):
    request = asked()[5]
    free = plain.generate([request])[0]
    for place, stop in enumerate(free):
        stopped = dataclasses.replace(request, stops=(stop, 319))
        assert plain.generate([stopped]) == [free[: free.index(stop)]]
        forbidden = dataclasses.replace(
            stopped, allowed=IdSet.of(set(range(320)) - {stop}), max_new=place + 2
        )
        assert stop not in plain.generate([forbidden])[0]


def test_the_sampling_of_a_call_is_for_requests_without_their_own(plain):
    bare = [dataclasses.replace(request, sampling=None) for request in asked()]
    assert plain.generate(bare, sampling=SAMPLING) == plain.generate(asked())
    assert plain.generate(bare) == plain.generate(bare, sampling=Sampling(temperature=0.0))
    assert plain.generate(bare) != plain.generate(asked())


def test_a_seed_makes_a_reply_and_another_seed_another(plain):
    one = asked()[6]
    first, again, other, last = plain.generate(
        [one, one, dataclasses.replace(one, seed=7), dataclasses.replace(one, seed=2**32 - 1)]
    )
    assert first == again and first != other != last != first


def test_no_requests_and_no_ids_get_no_answers(plain):
    assert plain.generate([]) == [] == plain.score([])
    none = dataclasses.replace(asked()[0], max_new=0)
    replies = plain.generate([none, asked()[1], none])
    assert replies == [[], plain.generate([asked()[1]])[0], []]
    assert plain.generate([none]) == [[]]


def test_a_limit_of_1_gives_the_first_id(plain):
    short = [dataclasses.replace(request, max_new=1) for request in asked()]
    assert plain.generate(short) == [reply[:1] for reply in plain.generate(asked())]


def test_without_a_limit_a_reply_ends_with_its_slot(plain):
    endless = dataclasses.replace(asked()[2], max_new=None, stops=(1,), allowed=IdSet(((5, 9),)))
    assert len(plain.generate([endless])[0]) == LENGTH - len(endless.prompt)


def test_slots_grow_with_what_is_asked(talker, talker_params, plain):
    growing = make(talker, talker_params, length=None)
    assert growing.generate(asked()) == plain.generate(asked())
    long = dataclasses.replace(asked()[0], prompt=ids_of(3, 100), max_new=40)
    assert growing.generate([long]) == plain.generate([long])
    with growing.session() as session:
        growing.generate([dataclasses.replace(asked()[0], session=session)])
        with pytest.raises(UserError, match="need.* 300 ids.*sessions.*give `length`"):
            growing.generate([dataclasses.replace(asked()[0], prompt=ids_of(4, 290), max_new=10)])


# What cannot be answered.

GOOD = GenerateRequest([1, 2], max_new=3)
BAD = {
    "its prompt is empty": {"prompt": []},
    "id 320 is not in the vocabulary, which has 320": {"prompt": [5, 320]},
    "id -1 is not in the vocabulary": {"prompt": [-1]},
    "id 999 is not in the vocabulary": {"stops": (5, 999)},
    "no ids are allowed": {"allowed": IdSet()},
    "ids are allowed that the model cannot say": {"allowed": IdSet(((300, 321),))},
    "no stop id and no limit": {"max_new": None},
    "142 ids of prompt and up to 3 new ones do not fit a slot of 144": {"prompt": [7] * 142},
    "145 ids of prompt and -1 new ones: nothing can be said": {
        "prompt": [7] * 145, "max_new": None, "stops": (1,),
    },
    "144 ids of prompt and 0 new ones": {"prompt": [7] * 144, "max_new": None, "stops": (1,)},
    "2 ids of prompt and -3 new ones": {"max_new": -3},
    "seed is -1": {"seed": -1},
    "seed is 4294967296": {"seed": 2**32},
}  # fmt: skip


@pytest.mark.parametrize(("why", "changes"), BAD.items())
@pytest.mark.parametrize("ask", ["generate", "generate_stream"])
def test_a_request_that_cannot_be_answered_is_named_before_anything_runs(plain, ask, why, changes):
    before = dataclasses.replace(plain.stats)
    with pytest.raises(UserError, match=f"request 2: .*{why}"):
        getattr(plain, ask)([GOOD, GOOD, dataclasses.replace(GOOD, **changes), GOOD])
    assert plain.stats == before


def test_a_model_says_no_ids_beyond_its_subset(talker, talker_params, some_ids):
    cut = make(talker, talker_params, vocab_subset=some_ids)
    with pytest.raises(UserError, match="request 0: ids are allowed that .*vocab_subset"):
        cut.generate([dataclasses.replace(GOOD, allowed=IdSet(((19, 30),)))])


def test_a_stop_without_a_limit_needs_slots_of_a_length(talker, talker_params):
    with pytest.raises(UserError, match="request 0: .*give max_new, or length"):
        make(talker, talker_params, length=None).generate(
            [dataclasses.replace(GOOD, max_new=None, stops=(4,))]
        )


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"batch_size": 0}, "0 slots"), ({"length": 1}, "slots of 1 ids"),
        ({"steps_per_call": 0}, "steps_per_call: 0"), ({"steps_per_call": 33}, "1 to 32"),
        ({"vocab_subset": IdSet()}, "vocab_subset: has 0 ids"),
        ({"vocab_subset": IdSet(((5, 321),))}, "the vocabulary has 320"),
    ],
)  # fmt: skip
def test_options_with_which_nothing_can_be_answered_are_refused(
    talker, talker_params, options, why
):
    with pytest.raises(UserError, match=why):
        make(talker, talker_params, **options)


# Streams.


def test_ids_come_in_order_and_before_the_replies_end(inference, plain):
    expected, got = plain.generate(asked()), {number: [] for number in range(7)}
    seen = []
    for number, id_ in inference.generate_stream(asked()):
        got[number].append(id_)
        seen.append(number)
    assert list(got.values()) == expected
    assert seen[:3] == [0, 1, 2] or inference._steps > 1


def test_a_cancelled_reply_ends_and_others_do_not_notice(inference, plain):
    expected = plain.generate(asked())
    stream, got = inference.generate_stream(asked()), {number: [] for number in range(7)}
    stream.cancel(6)  # before it is begun
    stream.cancel(0)
    for number, id_ in stream:
        got[number].append(id_)
        if number in (1, 4) and len(got[number]) == 2:
            stream.cancel(number)
            stream.cancel(number)
    stream.cancel(3)  # after all
    for number, reply in got.items():
        end = {6: 0, 0: 0, 1: 2, 4: 2}.get(number, 99)
        assert reply == expected[number][:end]
    assert inference.generate(asked()) == expected


@pytest.mark.parametrize("read", [0, 5])
@pytest.mark.parametrize("end", ["close", "drop", "cancel"])
def test_a_stream_that_ends_early_leaves_the_slots_clean(inference, plain, read, end):
    stream = inference.generate_stream(asked())
    for _ in range(read):
        next(stream)
    with pytest.raises(UserError, match="earlier stream of replies is open"):
        inference.generate(asked())
    if end == "close":
        stream.close()
        assert list(stream) == []
    elif end == "cancel":
        for number in range(7):
            stream.cancel(number)
        assert list(stream) == []
    del stream
    assert inference.generate(asked()[::-1]) == plain.generate(asked())[::-1]


def test_an_old_stream_cancels_nothing_of_a_new_one(inference, plain):
    old = inference.generate_stream(asked())
    next(old)
    old.close()
    new = inference.generate_stream(asked())
    first = next(new)
    old.cancel(first[0])
    old.close()
    got = {number: [] for number in range(7)}
    for number, id_ in [first, *new]:
        got[number].append(id_)
    assert list(got.values()) == plain.generate(asked())


# Dialogues.


def request_of(plain, context, prompt, ended, turn):
    """A request whose reply ends in this way, after this context."""
    request = GenerateRequest(prompt, max_new=7, seed=turn, sampling=SAMPLING)
    if ended in ("stop", "empty"):
        reply = plain.generate([dataclasses.replace(request, prompt=[*context, *prompt])])[0]
        request = dataclasses.replace(request, stops=(reply[0 if ended == "empty" else 3],))
    return dataclasses.replace(request, max_new=0) if ended == "nothing" else request


@pytest.mark.parametrize("ended", ["limit", "stop", "empty", "cancel", "early cancel", "nothing"])
def test_a_session_equals_sending_everything_again(inference, plain, ended):
    with inference.session() as session:
        for turn, size in enumerate((20, 5, 0, 1)):
            context, prompt = session.ids, ids_of(turn, size)
            request = request_of(plain, context, prompt, ended, turn)
            expected = plain.generate([dataclasses.replace(request, prompt=[*context, *prompt])])[0]
            stream = inference.generate_stream([dataclasses.replace(request, session=session)])
            if ended == "early cancel":
                stream.cancel(0)
            reply = []
            for _, id_ in stream:
                reply.append(id_)
                if ended == "cancel" and len(reply) == 2:
                    stream.cancel(0)
            if "cancel" in ended:
                expected = expected[: 2 * (ended == "cancel")]
            assert reply == expected
            assert session.ids == [*context, *prompt, *reply]
        # what a slot goes on doing for a reply that was cancelled does no harm
        assert inference.generate(asked(3)) == plain.generate(asked(3))


def test_only_new_ids_are_read(inference):
    read = []
    inference.generate(asked())
    engine = inference._scheduler.engine
    engine_read, engine.read = engine.read, lambda entries: (
        read.extend(len(entry.ids) for entry in entries), engine_read(entries),
    )  # fmt: skip
    with inference.session() as session:
        for size in (50, 3, 4):
            inference.generate([GenerateRequest(ids_of(1, size), max_new=4, session=session)])
    assert read == [50, 3 + 1, 4 + 1], "the last id of a reply is read with what follows it"


def test_two_sessions_and_plain_requests_share_the_slots(inference, plain):
    with inference.session() as one, inference.session() as other:
        for turn in range(4):
            turns = [
                dataclasses.replace(request, session=session)
                for request, session in zip(asked(2), (one, other), strict=True)
            ][:: (-1) ** turn]
            again = [
                dataclasses.replace(request, prompt=[*request.session.ids, *request.prompt],
                                    session=None)
                for request in turns
            ]  # fmt: skip
            others = asked()
            mixed = [others[0], turns[0], *others[1:4], turns[1], *others[4:]]
            expected = plain.generate([others[0], again[0], *others[1:4], again[1], *others[4:]])
            assert inference.generate(mixed) == expected


@pytest.mark.slow
def test_a_long_dialogue_is_read_in_parts(talker, talker_params):
    inference = make(talker, talker_params, batch_size=2, length=1072)
    with inference.session() as session:
        for turn, size in enumerate((525, 9, 516)):
            request = GenerateRequest(ids_of(turn, size), max_new=5, seed=turn, sampling=SAMPLING)
            again = dataclasses.replace(request, prompt=[*session.ids, *request.prompt])
            reply = inference.generate([dataclasses.replace(request, session=session)])
            assert reply == inference.generate([again])


def test_sessions_need_slots(inference, plain):
    sessions = [inference.session() for _ in range(4)]
    held = [dataclasses.replace(GOOD, session=session) for session in sessions]
    with pytest.raises(UserError, match="4 sessions begin: 3 slots are not held"):
        inference.generate(held)
    with pytest.raises(UserError, match="3 sessions begin, and others need a slot too: 3 slots"):
        inference.generate([*held[:3], GOOD])
    inference.generate([*held[:2], GOOD])
    inference.generate(held[:3])
    for refused in ([held[3]], [GOOD], [held[0], GOOD]):
        with pytest.raises(UserError, match="0 slots are not held"):
            inference.generate(refused)
    assert len(inference.generate(held[:3])) == 3, "those that hold a slot go on"
    sessions[1].close()
    assert sessions[1].ids == []
    again = [dataclasses.replace(request, session=None) for request in asked()]
    assert inference.generate(again) == plain.generate(asked())
    for session in sessions:
        session.close()
        session.close()
    inference.generate([*held[:2], GOOD])


def test_a_session_has_one_request_at_a_time(inference, talker, talker_params):
    with inference.session() as session:
        held = dataclasses.replace(GOOD, session=session)
        with pytest.raises(UserError, match="two requests go on with one session"):
            inference.generate([held, GOOD, held])
        with pytest.raises(UserError, match="request 1: its session is one of another model"):
            make(talker, talker_params).generate([GOOD, held])


def test_a_full_session_is_refused(inference):
    with inference.session() as session:
        inference.generate([GenerateRequest(ids_of(0, 130), max_new=10, session=session)])
        with pytest.raises(UserError, match="request 0: 141 ids of prompt and up to 4 new"):
            inference.generate([GenerateRequest([3], max_new=4, session=session)])
        assert len(session.ids) == 140


def test_a_session_that_is_closed_in_the_middle_frees_its_slot(inference, plain):
    session = inference.session()
    mine = dataclasses.replace(asked()[6], session=session)
    stream = inference.generate_stream([mine, *asked()])
    got = {number: [] for number in range(8)}
    for number, id_ in stream:
        got[number].append(id_)
        if len(got[0]) == 2:
            session.close()
    assert got.pop(0) == plain.generate([asked()[6]])[0][:2]
    assert list(got.values()) == plain.generate(asked())
    assert inference._scheduler.unkept == 3 and session.ids == []


# Scores.


@pytest.mark.parametrize("batch_size", [1, 2])
def test_scores_come_in_order_and_equal_the_model(config, params, model, batch_size):
    requests = [
        ScoreRequest([1, 2, 3], [4, 5]), ScoreRequest([6], [7, 8, 9, 10, 11]),
        ScoreRequest([1, 2, 3], []), ScoreRequest([6, 7], [8]),
    ]  # fmt: skip
    scores = Inference(config, params, batch_size=batch_size, multiple=4).score(requests)
    read = jax.jit(lambda ids: model(ids, whole(jnp.array([6]), 6)))
    for request, score in zip(requests, scores, strict=True):
        ids = [*request.prompt, *request.continuation]
        logits = read(jnp.array([ids + [0] * (6 - len(ids))]))[0]
        expected = sum(
            log_softmax(logits[place - 1])[ids[place]]
            for place in range(len(request.prompt), len(ids))
        )
        np.testing.assert_allclose(score, expected, atol=1e-4)
