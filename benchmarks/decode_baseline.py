"""Generation as it was before the engine of slots: what `benchmarks/decode.py` measures against.

Taken on 2026-11-28 from `nn/decode.py`, `nn/inference.py` and `Transformer.extend`, whose places
others hold now. A batch is filled with requests of one limit and one padded length, runs until its
slowest request ends, and is thrown away; weights and cache are float32, and the cache has one fill
for all rows. One thing is new: a request's reply ends at a given length (`end`), as if a stop id
came there, so that random weights can be measured at the lengths of real replies.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from speechlm_jax.nn import attention
from speechlm_jax.nn.attention import Layout, whole
from speechlm_jax.nn.language_model import LanguageModel, LanguageModelConfig, functional
from speechlm_jax.padding import round_up, run_in_batches


@dataclasses.dataclass(frozen=True)
class Request:
    """Continue `prompt` by `end` ids; the program has room for `max_new`."""

    prompt: Sequence[int]
    end: int
    max_new: int
    seed: int = 0


class Cache(NamedTuple):
    """Keys and values [layers, batch, kv_heads, slots, head_dim], and where each slot stands."""

    k: jax.Array
    v: jax.Array
    layout: Layout
    filled: jax.Array


class Progress(NamedTuple):
    """Of a batch."""

    step: jax.Array
    hidden: jax.Array
    cache: Cache
    ids: jax.Array
    lengths: jax.Array
    done: jax.Array


class Batches:
    """A language model that answers requests batch by batch."""

    def __init__(
        self, config: LanguageModelConfig, params: Any, *, batch_size: int = 64, multiple: int = 16
    ):
        self.config, self.batch_size, self.multiple = config, batch_size, multiple
        self.busy = self.slot_steps = 0  # of the last call: row-steps of a request, and all
        self._params = params
        model = functional(config)

        @partial(jax.jit, static_argnames=("max_new", "temperature"))
        def run(params, prompts, lengths, seeds, allowed, ends, *, max_new, temperature):
            keys = jax.vmap(jax.random.key)(seeds)
            return generate(
                model.bind(params), prompts, lengths, keys, allowed, ends, max_new, temperature
            )

        self._run = run

    def generate(
        self, requests: Sequence[Request], allowed: np.ndarray, *, temperature: float = 0.0
    ) -> list[list[int]]:
        """Returns the reply to each request, of ids that the mask allows."""
        self.busy = self.slot_steps = 0

        def run(numbers: np.ndarray, prompts: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
            chosen = [requests[number] for number in numbers]
            ends = np.array([request.end for request in chosen], np.int32)
            ids = self._run(
                self._params, prompts, lengths,
                np.array([request.seed for request in chosen], np.uint32),
                np.broadcast_to(allowed, (len(chosen), len(allowed))),
                ends, max_new=chosen[0].max_new, temperature=temperature,
            )  # fmt: skip
            self.busy += int(ends[: len(set(numbers.tolist()))].sum())
            self.slot_steps += int(ends.max()) * len(ends)
            return [row[:end].tolist() for row, end in zip(np.asarray(ids), ends, strict=True)]

        prompts = [list(request.prompt) for request in requests]
        sizes = [round_up(len(prompt), self.multiple) for prompt in prompts]
        limits = [request.max_new for request in requests]
        return run_in_batches(
            prompts, run, batch_size=self.batch_size, multiple=self.multiple,
            kinds=list(zip(limits, sizes, strict=True)),
        )  # fmt: skip


def generate(
    model: LanguageModel,
    prompts: jax.Array,
    prompt_lengths: jax.Array,
    keys: jax.Array,
    allowed: jax.Array,
    ends: jax.Array,
    max_new: int,
    temperature: float,
) -> jax.Array:
    """Continues right-padded prompts until all have ended; returns ids [batch, max_new]."""
    batch, size = prompts.shape
    hidden, cache = extend(
        model, prompts, whole(prompt_lengths, size), empty_cache(model, batch, size + max_new)
    )
    last = jnp.take_along_axis(hidden, (prompt_lengths - 1)[:, None, None], axis=1)

    def advance(state: Progress) -> Progress:
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, state.step)
        logits = jnp.where(allowed, model.logits(state.hidden)[:, 0], -jnp.inf)
        if temperature == 0:
            chosen = jnp.argmax(logits, axis=-1)
        else:
            chosen = jax.vmap(jax.random.categorical)(folded, logits / temperature)
        done = state.done | (state.lengths >= ends)
        chosen = jnp.where(done, 0, chosen).astype(prompts.dtype)
        ids = jax.lax.dynamic_update_slice(state.ids, chosen[:, None], (0, state.step))
        layout = Layout(
            segments=jnp.where(done, 0, 1)[:, None].astype(jnp.int32),
            positions=(prompt_lengths + state.step)[:, None],
        )
        hidden, cache = extend(model, chosen[:, None], layout, state.cache)
        lengths = state.lengths + ~done
        # A stop id would be seen in the step after the last id; an end is known in it.
        return Progress(state.step + 1, hidden, cache, ids, lengths, done | (lengths >= ends))

    start = Progress(
        jnp.int32(0), last, cache, jnp.zeros((batch, max_new), prompts.dtype),
        jnp.zeros(batch, jnp.int32), jnp.zeros(batch, bool),
    )  # fmt: skip
    return jax.lax.while_loop(lambda state: ~jnp.all(state.done), advance, start).ids


def empty_cache(model: LanguageModel, batch: int, slots: int) -> Cache:
    """Returns a cache that holds nothing yet."""
    stack = model.config.transformer
    zeros = jnp.zeros((stack.num_layers, batch, stack.kv_heads, slots, stack.head_dim))
    nothing = jnp.zeros((batch, slots), jnp.int32)
    return Cache(zeros, zeros, Layout(nothing, nothing), jnp.int32(0))


def extend(
    model: LanguageModel, ids: jax.Array, layout: Layout, cache: Cache
) -> tuple[jax.Array, Cache]:
    """Reads the next positions after what the cache holds."""
    at = (0, cache.filled)
    kept = Layout(
        jax.lax.dynamic_update_slice(cache.layout.segments, layout.segments, at),
        jax.lax.dynamic_update_slice(cache.layout.positions, layout.positions, at),
    )
    mask = attention.visible(layout, kept, model.config.transformer.block)
    graphdef, stacked = nnx.split(model.transformer.blocks)

    def layer(carry: tuple, inputs: tuple) -> tuple[tuple, None]:
        x, ks, vs = carry
        number, params = inputs
        block = nnx.merge(graphdef, params)
        normed = block.norm1(x)
        k, v = block.attention.keys_values(normed, layout.positions)
        at = (number, 0, 0, cache.filled, 0)
        ks = jax.lax.dynamic_update_slice(ks, k.swapaxes(1, 2)[None].astype(ks.dtype), at)
        vs = jax.lax.dynamic_update_slice(vs, v.swapaxes(1, 2)[None].astype(vs.dtype), at)
        q = block.attention.queries(normed, layout.positions)
        # `attend` swaps them back: XLA sees no transposition.
        now_k, now_v = (every[number].astype(x.dtype).swapaxes(1, 2) for every in (ks, vs))
        attended = block.attention.project(attention.attend(q, now_k, now_v, mask))
        return (block.after_attention(x, attended, None), ks, vs), None

    numbers = jnp.arange(model.config.transformer.num_layers)
    start = (model.embed(ids), cache.k, cache.v)
    (x, ks, vs), _ = jax.lax.scan(layer, start, (numbers, stacked))
    return x, Cache(ks, vs, kept, cache.filled + ids.shape[1])
