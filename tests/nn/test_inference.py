"""Lists of requests: answers in order, whatever the batch size, the padding and the neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from speechlm_jax.nn.attention import whole
from speechlm_jax.nn.decode import Sampling
from speechlm_jax.nn.inference import GenerateRequest, Inference, ScoreRequest

SAMPLING = Sampling(temperature=1.0)
EVEN = np.arange(24) % 2 == 0


@pytest.fixture(scope="module")
def small(config, params):
    return Inference(config, params, batch_size=2, multiple=4)


def requests():
    """Seven requests of several lengths, with two stops."""
    random = np.random.default_rng(0)
    return [
        GenerateRequest(
            prompt=random.integers(0, 24, 1 + 3 * i % 8).tolist(),
            allowed=EVEN if i % 2 else np.ones(24, bool),
            stops=(3,) if i < 5 else (4,),
            max_new=4,
            seed=i,
        )
        for i in range(7)
    ]


def test_replies_depend_on_their_request_alone(config, params, small):
    asked = requests()
    replies = small.generate(asked, sampling=SAMPLING)
    assert small.generate(asked[::-1], sampling=SAMPLING) == replies[::-1]
    assert small.generate(asked[3:4], sampling=SAMPLING) == replies[3:4]
    large = Inference(config, params, batch_size=3, multiple=16)
    assert large.generate(asked[1:4], sampling=SAMPLING) == replies[1:4]
    for request, reply in zip(asked, replies, strict=True):
        assert len(reply) <= request.max_new
        assert all(request.allowed[i] and i not in request.stops for i in reply)


def test_scores_come_in_order_and_equal_the_model(small, model):
    asked = [
        ScoreRequest([1, 2, 3], [4, 5]),
        ScoreRequest([6], [7, 8, 9, 10, 11]),
        ScoreRequest([1, 2, 3], []),
    ]
    scores = small.score(asked)
    read = jax.jit(lambda ids: model(ids, whole(jnp.array([6]), 6)))
    for request, score in zip(asked, scores, strict=True):
        ids = [*request.prompt, *request.continuation]
        logits = read(jnp.array([ids + [0] * (6 - len(ids))]))[0]
        expected = sum(
            log_softmax(logits[place - 1])[ids[place]]
            for place in range(len(request.prompt), len(ids))
        )
        np.testing.assert_allclose(score, expected, atol=1e-4)


def test_no_requests_get_no_answers(small):
    assert small.generate([]) == [] == small.score([])
