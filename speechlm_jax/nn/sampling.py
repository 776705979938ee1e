"""Logits -> the next id of each request, from settings that are data: any mix is one program.

A request draws with one uniform number: its choice is where the number falls in the cumulative
distribution of the ids that it may say. The order of the ids, and so the choice, follows from the
request's own logits and settings, never from who else is in the batch.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from speechlm_jax import config as configs
from speechlm_jax.arrays import Array, Bool, Float, Int
from speechlm_jax.errors import UserError

CANDIDATES = 64  # likeliest ids among which a nucleus is looked for before all are sorted
COLDEST = 1e-5  # temperature; what is below is greedy, and divides nothing beyond float32
BLOCK = 128  # ids whose chances are summed together before one of them is drawn


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next id is chosen. Penalty, temperature, top-k, top-p come in this order.

    Attributes:
      temperature: logits are divided by it; 0 is greedy, and so is less than `COLDEST`.
      top_p: the likeliest ids that together have this probability are kept (nucleus, Holtzman et
        al. 2020), and always the likeliest one; 1 keeps all.
      top_k: number of likeliest ids that are kept; 0 keeps all.
      repetition_penalty: positive logits of ids in prompt and reply are divided by it, negative
        ones multiplied (Keskar et al. 2019); 1 changes nothing.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        configs.at_least(self, 0, "temperature", "top_p", "top_k")
        configs.above_0(self, "repetition_penalty")
        if self.top_p > 1:
            raise UserError(f"top_p: {self.top_p} is above 1")


GREEDY = Sampling()


class Settings(NamedTuple):
    """`Sampling` of each row."""

    temperature: Float[Array, " rows"]
    top_p: Float[Array, " rows"]
    top_k: Int[Array, " rows"]
    penalty: Float[Array, " rows"]


class Choice(NamedTuple):
    """Places of the chosen ids in the logits, and which rows had to be searched as a whole."""

    places: Int[Array, " rows"]
    searched: Bool[Array, " rows"]


class _Last(NamedTuple):
    """The last id of each row that is kept: likelier ones come first, of equal ones the smaller."""

    logit: Float[Array, " rows"]
    place: Int[Array, " rows"]

    def kept(self, logits: Float[Array, "rows ids"]) -> Bool[Array, "rows ids"]:
        """Which ids are kept."""
        logit, places = self.logit[:, None], jnp.arange(logits.shape[-1])
        return (logits > logit) | ((logits == logit) & (places <= self.place[:, None]))

    def where(self, rows: Bool[Array, " rows"], other: "_Last") -> "_Last":
        """These of some rows, others' of the rest."""
        return _Last(*(jnp.where(rows, x, y) for x, y in zip(self, other, strict=True)))


def penalise(
    logits: Float[Array, "rows ids"],
    penalty: Float[Array, " rows"],
    said: Callable[[], Int[Array, "rows length"]],
    used: Bool[Array, " rows"],
) -> Float[Array, "rows ids"]:
    """Applies the repetition penalty.

    Args:
      said: gives places in the logits of the ids of prompt and reply; beyond the logits: none. Only
        asked where a row has a penalty.
      used: the rows that count.
    """

    def apply() -> Array:
        rows, places = jnp.arange(len(logits))[:, None], said()
        values = logits.at[rows, places].get(mode="clip")
        values = jnp.where(values > 0, values / penalty[:, None], values * penalty[:, None])
        return logits.at[rows, places].set(values, mode="drop")

    return jax.lax.cond(jnp.any(used & (penalty != 1)), apply, lambda: logits)


def choose(
    logits: Float[Array, "rows ids"],
    uniform: Float[Array, " rows"],
    settings: Settings,
    used: Bool[Array, " rows"],
) -> Choice:
    """Chooses an id for each row.

    Args:
      logits: -inf where an id may not be said; penalised already.
      uniform: a number in [0, 1) for each row.
      used: the rows that count; others get any place.
    """
    greedy = settings.temperature < COLDEST
    ranked = used & ~greedy & ((settings.top_p < 1) | (settings.top_k > 0))
    logits = logits / jnp.where(greedy, 1.0, settings.temperature)[:, None]

    def draw_kept() -> tuple[Array, Array]:
        last, searched = _last_kept(logits, settings, ranked)
        return draw(jnp.where(last.kept(logits), logits, -jnp.inf), uniform), searched

    nothing = jnp.zeros(len(used), jnp.int32), jnp.zeros_like(used)
    drawn, searched = jax.lax.cond(jnp.any(used & ~greedy), draw_kept, lambda: nothing)
    return Choice(jnp.where(greedy, _argmax(logits), drawn), searched)


def _last_kept(
    logits: Float[Array, "rows ids"], settings: Settings, ranked: Bool[Array, " rows"]
) -> tuple[_Last, Bool[Array, " rows"]]:
    """The last id that top-k and top-p keep, and for which rows all ids had to be searched.

    Args:
      ranked: the rows that do not keep all.
    """
    rows, size = logits.shape
    everything = _Last(jnp.full(rows, -jnp.inf), jnp.full(rows, size - 1, jnp.int32))
    few = min(CANDIDATES, size)
    among, fits = jax.lax.cond(
        jnp.any(ranked),
        lambda: _last_among(logits, settings, few),
        lambda: (everything, jnp.ones_like(ranked)),
    )
    last, searched = among.where(ranked, everything), ranked & ~fits
    if few < size:
        last = jax.lax.cond(
            jnp.any(searched),
            lambda: _last_of_all(logits, settings).where(searched, last),
            lambda: last,
        )
    return last, searched


def _argmax(logits: Array) -> Array:
    """Returns the first of the highest, in two passes that XLA vectorises; argmax it does not."""
    highest = jnp.max(logits, axis=-1, keepdims=True)
    numbers = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    return jnp.min(jnp.where(logits == highest, numbers, logits.shape[-1] - 1), axis=-1)


def draw(logits: Float[Array, "rows ids"], uniform: Float[Array, " rows"]) -> Int[Array, " rows"]:
    """Draws from softmax(logits), ids in their own order: first a block of ids, then one of it."""
    rows, size = logits.shape
    chances = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    padding = -size % BLOCK
    blocks = jnp.pad(chances, ((0, 0), (0, padding))).reshape(rows, -1, BLOCK)
    sums = jnp.sum(blocks, axis=-1)
    edges = jnp.cumsum(sums, axis=-1)
    goal = uniform * edges[:, -1]
    block = _first_above(sums, goal)

    def take(x: Array) -> Array:
        return jnp.take_along_axis(x, block[:, None], axis=1)[:, 0]

    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    place = _first_above(inside, goal - (take(edges) - take(sums)))
    return (block * BLOCK + place).astype(jnp.int32)


def _first_above(chances: Array, goal: Array) -> Array:
    """The first place where the sum so far is above the goal; never one of chance 0.

    Sums over many places are rounded each in its own order: they may rise where nothing is added,
    and fall.
    """
    numbers = jnp.arange(chances.shape[-1])
    real = chances > 0
    above = real & (jnp.cumsum(chances, axis=-1) > goal[:, None])
    last = jnp.max(jnp.where(real, numbers, 0), axis=-1, keepdims=True)
    return jnp.min(jnp.where(above, numbers, last), axis=-1)


def _last_among(
    logits: Float[Array, "rows ids"], settings: Settings, number: int
) -> tuple[_Last, Bool[Array, " rows"]]:
    """The last of the `number` likeliest ids that is kept, and whether they hold all that are."""
    size = logits.shape[-1]
    best, places = jax.lax.top_k(logits, number)
    chances = jnp.exp(best - best[:, :1])
    limit = jnp.where(settings.top_k > 0, jnp.minimum(settings.top_k, size), size)
    chances = jnp.where(jnp.arange(number) < limit[:, None], chances, 0.0)
    complete = limit <= number
    everything = jnp.sum(jnp.exp(logits - best[:, :1]), axis=-1)
    sums = jnp.cumsum(chances, axis=-1)
    wanted = settings.top_p * jnp.where(complete, sums[:, -1], everything)
    # Where more ids are asked for than are at hand, their mass is not known.
    fits = complete | ((limit == size) & (sums[:, -1] >= wanted))
    kept = (jnp.arange(number) < limit[:, None]) & (sums - chances < wanted[:, None])
    last = jnp.maximum(jnp.sum(kept, axis=-1, keepdims=True), 1) - 1

    def take(x: Array) -> Array:
        return jnp.take_along_axis(x, last, axis=1)[:, 0]

    return _Last(take(best), take(places)), fits


def _last_of_all(logits: Float[Array, "rows ids"], settings: Settings) -> _Last:
    """The last id that is kept, by two searches over all: for top-k, then for top-p."""
    size = logits.shape[-1]
    limit = jnp.where(settings.top_k > 0, jnp.minimum(settings.top_k, size), size)
    likeliest = _search(logits, jnp.ones_like(logits), limit.astype(jnp.float32))
    chances = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    chances = jnp.where(likeliest.kept(logits), chances, 0.0)
    wanted = settings.top_p * jnp.sum(chances, axis=-1)
    return _search(logits, chances, jnp.maximum(wanted, jnp.finfo(jnp.float32).tiny))


def _search(
    logits: Float[Array, "rows ids"], weights: Float[Array, "rows ids"], goal: Float[Array, " rows"]
) -> _Last:
    """The id with which the weights add up to the goal (above 0), likelier ids first.

    By halving, first the range of float32 (its bits, in the order of the numbers), then the ids of
    one logit: some 50 sums over all, where a sort takes ten times as long.
    """
    size = logits.shape[-1]
    bits = jax.lax.bitcast_convert_type(jnp.where(logits == 0, 0.0, logits), jnp.int32)
    ranks = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)

    def halve(enough, lowest: Array, highest: Array, times: int) -> Array:
        """The highest number that is enough; the lowest is."""

        def step(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = (low | high) - ((low ^ high) >> 1)  # rounded up, without overflow
            good = enough(middle[:, None])
            return jnp.where(good, middle, low), jnp.where(good, high, middle - 1)

        return jax.lax.fori_loop(0, times, step, (lowest, highest))[0]

    def weight(which: Array) -> Array:
        return jnp.sum(jnp.where(which, weights, 0.0), axis=-1)

    rank = halve(
        lambda rank: weight(ranks >= rank) >= goal, jnp.min(ranks, -1), jnp.max(ranks, -1), 32
    )
    above = weight(ranks > rank[:, None])
    equal = ranks == rank[:, None]
    from_end = jnp.arange(size)[::-1]  # the last place is 0, so that fewer ids are a higher number
    zero = jnp.zeros_like(rank)
    skipped = halve(
        lambda end: above + weight(equal & (from_end >= end)) >= goal, zero, zero + size - 1,
        size.bit_length(),
    )  # fmt: skip
    logit = jnp.max(jnp.where(equal, logits, -jnp.inf), axis=-1)
    return _Last(logit, size - 1 - skipped)
