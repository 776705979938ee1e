"""Generation and scoring for lists of requests, batched into a few static shapes."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from speechlm_jax.arrays import Array, Bool, PyTree, ndarray
from speechlm_jax.nn import decode
from speechlm_jax.nn.decode import GREEDY, Generated, Sampling
from speechlm_jax.nn.language_model import LanguageModelConfig, functional
from speechlm_jax.padding import round_up, run_in_batches


@dataclasses.dataclass(frozen=True, eq=False)
class GenerateRequest:
    """Continue `prompt`.

    Attributes:
      prompt: ids, at least one.
      allowed: the ids that may be said, over the vocabulary (stop ids included).
      stops: ids that end the reply; they are not part of it.
      max_new: longest reply.
      seed: of this request alone; its reply depends on no other request.
    """

    prompt: Sequence[int]
    allowed: Bool[ndarray, " vocab"]
    stops: tuple[int, ...]
    max_new: int
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class ScoreRequest:
    """Give the log-probability of `continuation` after `prompt`."""

    prompt: Sequence[int]
    continuation: Sequence[int]


@lru_cache(maxsize=8)
def _programs(config: LanguageModelConfig) -> tuple[Callable[..., Generated], Callable[..., Array]]:
    """Compiled `generate` and `score`, shared by all models of one config."""
    model = functional(config)

    @partial(jax.jit, static_argnames=("max_new", "sampling"))
    def generate(
        params: PyTree,
        prompts: Array,
        lengths: Array,
        seeds: Array,
        allowed: Array,
        stops: Array,
        max_new: int,
        sampling: Sampling,
    ) -> Generated:
        return decode.generate(
            model.bind(params),
            prompts,
            lengths,
            keys=jax.vmap(jax.random.key)(seeds),
            allowed=allowed,
            stops=stops,
            max_new=max_new,
            sampling=sampling,
        )

    @jax.jit
    def score(params: PyTree, ids: Array, lengths: Array, starts: Array) -> Array:
        places = jnp.arange(ids.shape[1])[None]
        counted = (places >= starts[:, None]) & (places < lengths[:, None])
        return decode.score(model.bind(params), ids, lengths, counted)

    return generate, score


class Inference:
    """A trained language model that answers requests.

    Requests are sorted by length and padded to multiples of `multiple` ids and full batches, so
    that few programs are compiled; answers come back in the order of the requests.
    """

    def __init__(
        self,
        config: LanguageModelConfig,
        params: PyTree,
        *,
        batch_size: int = 64,
        multiple: int = 16,
    ):
        self.config = config
        self._params = params
        self._batch_size = batch_size
        self._multiple = multiple
        self._generate, self._score = _programs(config)

    def generate(
        self, requests: Sequence[GenerateRequest], *, sampling: Sampling = GREEDY
    ) -> list[list[int]]:
        """The reply to each request, stop id left out."""

        def run(chosen: list[GenerateRequest], prompts: np.ndarray, lengths: np.ndarray) -> list:
            stops = np.zeros(self.config.vocab_size, bool)
            stops[list(chosen[0].stops)] = True
            allowed = np.stack([request.allowed for request in chosen])
            seeds = np.array([request.seed for request in chosen], np.uint32)
            made = self._generate(
                self._params,
                prompts,
                lengths,
                seeds,
                allowed,
                stops,
                max_new=chosen[0].max_new,
                sampling=sampling,
            )
            return [
                ids[:length].tolist()
                for ids, length in zip(np.asarray(made.ids), np.asarray(made.lengths), strict=True)
            ]

        return self._batched(
            requests,
            prompts=[list(request.prompt) for request in requests],
            alike=[(request.stops, request.max_new) for request in requests],
            run=run,
        )

    def score(self, requests: Sequence[ScoreRequest]) -> list[float]:
        """Log-probability (nats) of each continuation after its prompt."""

        def run(chosen: list[ScoreRequest], ids: np.ndarray, lengths: np.ndarray) -> list:
            starts = np.array([len(request.prompt) for request in chosen], np.int32)
            return np.asarray(self._score(self._params, ids, lengths, starts)).tolist()

        return self._batched(
            requests,
            prompts=[[*request.prompt, *request.continuation] for request in requests],
            alike=[()] * len(requests),
            run=run,
        )

    def _batched(
        self, requests: Sequence, *, prompts: list[list[int]], alike: list[tuple], run: Callable
    ) -> list:
        """Runs `run(requests, ids, lengths)` over batches of like requests of one padded size."""
        sizes = [round_up(len(prompt), self._multiple) for prompt in prompts]
        return run_in_batches(
            prompts,
            lambda numbers, ids, lengths: run([requests[i] for i in numbers], ids, lengths),
            batch_size=self._batch_size,
            multiple=self._multiple,
            kinds=list(zip(alike, sizes, strict=True)),
        )
