"""Sampling by its definition; generation and scoring against full forward passes, one at a time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from speechlm_jax.nn import decode
from speechlm_jax.nn.attention import whole
from speechlm_jax.nn.decode import GREEDY, Sampling, choose
from speechlm_jax.nn.language_model import functional

VOCAB, MAX_NEW, DRAWS = 24, 6, 3000
PROMPTS = ([3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5])
FREE = np.ones(VOCAB, bool)


def keys(seeds):
    return jax.vmap(jax.random.key)(jnp.array(seeds, jnp.uint32))


def padded(prompts, size=6):
    ids = np.full((len(prompts), size), 7, np.int32)  # what pads a prompt is never read
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    return jnp.array(ids), jnp.array([len(prompt) for prompt in prompts])


@pytest.fixture(scope="module")
def generate(config, params):
    """generate(prompts, seeds, allowed, stops, sampling) -> lists of ids."""

    @partial(jax.jit, static_argnames="sampling")
    def run(prompts, lengths, keys, allowed, stops, sampling):
        return decode.generate(
            functional(config).bind(params), prompts, lengths,
            keys=keys, allowed=allowed, stops=stops, max_new=MAX_NEW, sampling=sampling,
        )  # fmt: skip

    def lists(prompts, *, seeds=(0, 1, 2), allowed=FREE, stops=(), sampling=GREEDY):
        stopping = np.zeros(VOCAB, bool)
        stopping[list(stops)] = True
        chances = jnp.array(np.stack([allowed] * len(prompts)))
        made = run(*padded(prompts), keys(seeds), chances, jnp.array(stopping), sampling)
        for ids, length in zip(made.ids, made.lengths, strict=True):
            assert not np.asarray(ids)[int(length) :].any(), "what follows the reply is zeros"
        return [ids[:n].tolist() for ids, n in zip(made.ids, made.lengths, strict=True)]

    return lists


@pytest.fixture(scope="module")
def logits_after(config, params):
    """logits_after(ids): of the id that follows, by one full forward pass."""

    @jax.jit
    def run(ids, length):
        return functional(config).bind(params)(ids[None], whole(length[None], 12))[0]

    def last(ids):
        row = jnp.array([*ids, *[0] * (12 - len(ids))])
        return np.asarray(run(row, jnp.int32(len(ids))))[len(ids) - 1]

    return last


def test_greedy_generation_is_step_by_step_argmax(generate, logits_after):
    for prompt, reply in zip(PROMPTS, generate(PROMPTS), strict=True):
        ids = list(prompt)
        for chosen in reply:
            assert chosen == np.argmax(logits_after(ids))
            ids.append(chosen)
        assert len(reply) == MAX_NEW


def test_an_empty_nucleus_still_holds_the_likeliest_id():
    logits = jnp.array(np.random.default_rng(3).normal(size=(50, VOCAB)), jnp.float32)
    allowed = jnp.ones(logits.shape, bool)
    chosen = choose(logits, keys(range(50)), allowed, Sampling(temperature=1.0, top_p=0.0))
    np.testing.assert_array_equal(chosen, jnp.argmax(logits, axis=-1))


def test_a_reply_is_independent_of_its_batch_mates(generate):
    sampling = Sampling(temperature=1.0, top_p=0.9)
    together = generate(PROMPTS, seeds=(5, 6, 7), sampling=sampling)
    others = generate(
        ([8, 8, 8, 8, 8, 8], PROMPTS[1], PROMPTS[0]), seeds=(1, 6, 5), sampling=sampling
    )
    assert others[1:] == [together[1], together[0]]
    again = generate((PROMPTS[1],) * 3, seeds=(6, 60, 600), sampling=sampling)
    assert again[0] == together[1] and len(set(map(tuple, again))) > 1


def test_only_allowed_ids_are_said(generate, logits_after):
    allowed = np.arange(VOCAB) % 3 == 0
    for sampling in (GREEDY, Sampling(temperature=1.0, top_p=0.9)):
        said = {i for reply in generate(PROMPTS, allowed=allowed, sampling=sampling) for i in reply}
        assert said and all(i % 3 == 0 for i in said)
    first = generate(PROMPTS, allowed=allowed)[0][0]
    assert first == np.argmax(np.where(allowed, logits_after(PROMPTS[0]), -np.inf))


def test_a_stop_ends_its_own_reply_and_is_no_part_of_it(generate):
    free = generate(PROMPTS)
    stop = next(i for i in free[0][2:] if i not in free[0][:2])
    for reply, stopped in zip(free, generate(PROMPTS, stops=(stop,)), strict=True):
        assert stopped == (reply[: reply.index(stop)] if stop in reply else reply)
    assert stop in free[0]


def test_scores_are_sums_of_log_softmax(config, params, logits_after):
    documents = ([3, 1, 4, 1, 5], [9, 2, 6])
    ids, lengths = padded(documents)
    counted = np.zeros((2, 6), bool)
    counted[0, 2:5], counted[1, 1:3] = True, True
    score = jax.jit(lambda *args: decode.score(functional(config).bind(params), *args))
    got = score(ids, lengths, jnp.array(counted))
    for document, first, scored in zip(documents, (2, 1), got, strict=True):
        expected = sum(
            log_softmax(logits_after(document[:place]))[document[place]]
            for place in range(first, len(document))
        )
        np.testing.assert_allclose(scored, expected, atol=1e-4)


def drawn(logits, sampling, allowed=FREE):
    """How often each id is drawn, as a share."""
    many = jnp.broadcast_to(jnp.array(logits, jnp.float32), (DRAWS, VOCAB))
    chances = jnp.broadcast_to(jnp.array(allowed), many.shape)
    ids = jax.jit(choose, static_argnums=3)(many, keys(range(DRAWS)), chances, sampling)
    return np.bincount(np.asarray(ids), minlength=VOCAB) / DRAWS


@pytest.mark.parametrize("top_p", [0.3, 0.8, 1.0])
def test_the_nucleus_is_the_smallest_set_of_that_mass(top_p):
    logits = 0.6 * np.random.default_rng(3).normal(size=VOCAB)
    allowed = np.arange(VOCAB) != np.argmax(logits)
    chances = softmax(np.where(allowed, logits, -np.inf) / 0.7)
    order = np.argsort(-chances)
    kept = order[: int(np.searchsorted(np.cumsum(chances[order]), top_p)) + 1]
    expected = np.where(np.isin(np.arange(VOCAB), kept), chances, 0)
    got = drawn(logits, Sampling(temperature=0.7, top_p=top_p), allowed)
    assert not got[expected == 0].any()
    np.testing.assert_allclose(got, expected / expected.sum(), atol=4 / np.sqrt(DRAWS) / 2)


def test_a_temperature_of_zero_is_greedy():
    logits = np.random.default_rng(4).normal(size=VOCAB)
    assert drawn(logits, GREEDY)[np.argmax(logits)] == 1
