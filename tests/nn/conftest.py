"""Tiny language models with grouped queries, and sampling by its definition, for this room."""

import functools

import jax
import numpy as np
import pytest
from scipy.special import softmax

from speechlm_jax.id_set import IdSet
from speechlm_jax.nn import decoding_params
from speechlm_jax.nn.engine import Engine
from speechlm_jax.nn.inference import ReplyStream, make_job
from speechlm_jax.nn.language_model import LanguageModelConfig, functional
from speechlm_jax.nn.sampling import GREEDY
from speechlm_jax.nn.scheduler import Scheduler
from speechlm_jax.nn.transformer import TransformerConfig

STACK = TransformerConfig(num_layers=2, embed=16, heads=4, kv_heads=2, head_dim=8, mlp=24)
LENGTH = 144  # of a slot


@pytest.fixture(scope="session")
def config():
    # untied: a random model with one table for both would only repeat its last id
    return LanguageModelConfig(vocab_size=24, transformer=STACK, tied=False)


@pytest.fixture(scope="session")
def params(config, draw):
    return draw(functional(config))


@pytest.fixture(scope="session")
def model(config, params):
    return functional(config).bind(params)


@pytest.fixture(scope="session")
def talker():
    """A model with more ids than there are candidates, or ids of a block."""
    return LanguageModelConfig(vocab_size=320, transformer=STACK, tied=False)


@pytest.fixture(scope="session")
def talker_params(talker, draw):
    return draw(functional(talker), seed=1)


@pytest.fixture(scope="session")
def some_ids():
    """Some of the ids of `talker`, to which its output layer can be cut."""
    return IdSet(((20, 150), (170, 171), (180, 220)))


@pytest.fixture(scope="session")
def make_engine(talker, talker_params, some_ids):
    """make_engine(slots, cut=False): of `talker`, the same one for all that ask."""

    @functools.cache
    def make(slots, cut=False):
        subset = some_ids.to_array() if cut else None
        weights = decoding_params.prepare(
            talker, talker_params, vocab_subset=subset, transposed=slots > 1
        )  # as `Inference` does on a CPU, so that they share programs
        return Engine(weights, slots=slots, length=LENGTH)

    return make


@pytest.fixture(scope="session")
def schedule():
    """schedule(engine, requests, ...): (a new scheduler, the stream of the replies)."""

    def begin(engine, requests, *, steps=None, overlap=False, order=None):
        subset = engine._weights.subset
        whole = IdSet(((0, engine.config.vocab_size),))
        check = functools.partial(
            make_job, sampling=GREEDY, vocab_size=engine.config.vocab_size,
            sayable=whole if subset is None else IdSet.of(subset.tolist()), length=engine.length,
        )  # fmt: skip
        order = range(len(requests)) if order is None else order
        scheduler = Scheduler(engine, steps_per_call=steps, overlap=overlap)
        return scheduler, ReplyStream(scheduler, [check(i, requests[i]) for i in order])

    return begin


@pytest.fixture(scope="session")
def answer(schedule):
    """answer(engine, requests, ...): {number: reply}, by a new scheduler.

    Args:
      order: numbers of the requests that are sent, in this order; None: all.
      cancel: {number: ids after which it is cancelled}.
    """

    def replies(engine, requests, *, order=None, cancel=(), **options):
        _, stream = schedule(engine, requests, order=order, **options)
        got = {number: [] for number in (range(len(requests)) if order is None else order)}
        for number in got:
            if number in cancel and cancel[number] == 0:
                stream.cancel(number)
        for number, id_ in stream:
            got[number].append(id_)
            if number in cancel and cancel[number] == len(got[number]):
                stream.cancel(number)
        return got

    return replies


def penalised(logits, said, penalty):
    """Logits of the ids that were said, divided or multiplied."""
    logits = np.array(logits, np.float64)
    for number in set(said):
        logits[number] = (
            logits[number] / penalty if logits[number] > 0 else logits[number] * penalty
        )
    return logits


def chances(logits, sampling):
    """The chance of each id, in float64; logits of -inf: may not be said."""
    logits = np.asarray(logits, np.float64)
    if sampling.temperature == 0:
        return (np.arange(len(logits)) == np.argmax(logits)).astype(float)
    chance = softmax(logits / sampling.temperature)
    order = np.argsort(-logits, kind="stable")  # likelier ones first, of equal ones the smaller
    if sampling.top_k:
        chance[order[sampling.top_k :]] = 0
        chance /= chance.sum()
    if sampling.top_p < 1:
        before = np.cumsum(chance[order]) - chance[order]
        chance[order[(before >= sampling.top_p) & (np.arange(len(chance)) > 0)]] = 0
    return chance / chance.sum()


def choose(logits, sampling, uniform):
    chance = chances(logits, sampling)
    place = np.searchsorted(np.cumsum(chance), uniform, side="right")
    return int(min(place, np.flatnonzero(chance)[-1]))


@pytest.fixture(scope="session")
def by_definition():
    """Sampling in float64, written from its definition: a namespace of functions."""

    @jax.jit
    @jax.vmap
    def numbers_of(seed, number):
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), number)
        return (jax.random.bits(key, (), np.uint32) >> 8) * np.float32(2**-24)

    class Definition:
        """Of all of them."""

        penalised = staticmethod(penalised)
        chances = staticmethod(chances)
        choose = staticmethod(choose)

        @staticmethod
        def uniforms(seeds, numbers):
            """Numbers in [0, 1), each by a request's seed and the number of an id of its reply."""
            return np.asarray(numbers_of(*np.broadcast_arrays(np.uint32(seeds), numbers)))

        @staticmethod
        def is_sure(logits, sampling, uniform, *, by=2e-5):
            """Whether the choice stays the same if all numbers change a little."""
            random = np.random.default_rng(0)
            top_p, found = sampling.top_p, {choose(logits, sampling, uniform)}
            for sign in (-1, 1):
                noise = by * random.uniform(-1, 1, len(logits))
                near = top_p if top_p == 1 else float(np.clip(top_p + sign * by, 0, 1))
                moved = type(sampling)(sampling.temperature, near, sampling.top_k)
                for u in (uniform - by, uniform + by):
                    found.add(choose(logits + noise, moved, min(max(u, 0), 1 - 2**-24)))
            return len(found) == 1

    return Definition
