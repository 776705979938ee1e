"""Generation and scoring for every model of ids: explicit cache, a key per request, allowed ids."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from speechlm_jax.arrays import Array, Bool, Float, Int, Key
from speechlm_jax.nn.attention import Layout, whole
from speechlm_jax.nn.language_model import LanguageModel
from speechlm_jax.nn.losses import cross_entropy
from speechlm_jax.nn.transformer import Cache


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next id is chosen: `temperature` 0 is greedy, `top_p` keeps the nucleus."""

    temperature: float = 0.0
    top_p: float = 1.0


GREEDY = Sampling()


class Generated(NamedTuple):
    """Generated ids, right-padded with zeros, and how many of them count (the stop id does not)."""

    ids: Int[Array, "batch new"]
    lengths: Int[Array, " batch"]


class _Progress(NamedTuple):
    step: Array
    hidden: Array
    cache: Cache
    ids: Array
    lengths: Array
    done: Array


def choose(
    logits: Float[Array, "batch vocab"],
    keys: Key[Array, " batch"],
    allowed: Bool[Array, "batch vocab"],
    sampling: Sampling,
) -> Int[Array, " batch"]:
    """The next id of each request, from its own key: independent of who shares the batch."""
    logits = jnp.where(allowed, logits, -jnp.inf)
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1)
    logits = logits / sampling.temperature
    if sampling.top_p < 1:
        ranked = jnp.sort(logits, axis=-1, descending=True)
        before = jnp.cumsum(jax.nn.softmax(ranked, axis=-1), axis=-1) - jax.nn.softmax(
            ranked, axis=-1
        )
        kept = jnp.maximum(jnp.sum(before < sampling.top_p, axis=-1), 1)
        threshold = jnp.take_along_axis(ranked, kept[:, None] - 1, axis=-1)
        logits = jnp.where(logits < threshold, -jnp.inf, logits)
    return jax.vmap(jax.random.categorical)(keys, logits)


def generate(
    model: LanguageModel,
    prompts: Int[Array, "batch prompt"],
    prompt_lengths: Int[Array, " batch"],
    *,
    keys: Key[Array, " batch"],
    allowed: Bool[Array, "batch vocab"],
    stops: Bool[Array, " vocab"],
    max_new: int,
    sampling: Sampling = GREEDY,
) -> Generated:
    """Continues right-padded prompts until a stop id or `max_new` ids (static under jit).

    Every request is as if it were alone: padding is segment 0 in the cache, positions count the
    request's own ids, and its key is folded with its own step.
    """
    batch, size = prompts.shape
    cache = Cache.empty(model.config.transformer, batch=batch, slots=size + max_new)
    hidden, cache = model.extend(prompts, whole(prompt_lengths, size), cache)
    last = jnp.take_along_axis(hidden, (prompt_lengths - 1)[:, None, None], axis=1)

    def unfinished(state: _Progress) -> Array:
        return (state.step < max_new) & ~jnp.all(state.done)

    def advance(state: _Progress) -> _Progress:
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, state.step)
        chosen = choose(model.logits(state.hidden)[:, 0], folded, allowed, sampling)
        done = state.done | stops[chosen]
        chosen = jnp.where(done, 0, chosen).astype(prompts.dtype)
        ids = jax.lax.dynamic_update_slice(state.ids, chosen[:, None], (0, state.step))
        layout = Layout(
            segments=jnp.where(done, 0, 1)[:, None].astype(jnp.int32),
            positions=(prompt_lengths + state.step)[:, None],
        )
        hidden, cache = model.extend(chosen[:, None], layout, state.cache)
        lengths = state.lengths + ~done
        return _Progress(state.step + 1, hidden, cache, ids, lengths, done)

    start = _Progress(
        jnp.int32(0),
        last,
        cache,
        jnp.zeros((batch, max_new), prompts.dtype),
        jnp.zeros(batch, jnp.int32),
        jnp.zeros(batch, bool),
    )
    end = jax.lax.while_loop(unfinished, advance, start)
    return Generated(end.ids, end.lengths)


def score(
    model: LanguageModel,
    ids: Int[Array, "batch length"],
    lengths: Int[Array, " batch"],
    counted: Bool[Array, "batch length"],
) -> Float[Array, " batch"]:
    """Log-probability (nats) of the `counted` ids of right-padded rows, given all before them."""
    logits = model(ids, whole(lengths, ids.shape[1]))[:, :-1]
    logprobs = -cross_entropy(logits, ids[:, 1:])
    return jnp.sum(jnp.where(counted[:, 1:], logprobs, 0.0), axis=1)
