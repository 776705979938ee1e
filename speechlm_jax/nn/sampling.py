"""Logits -> the next id of each request, from settings that are data: any mix is one program.

A request draws with one uniform number: its choice is where the number falls in the cumulative
distribution of the ids that it may say. The order of the ids, and so the choice, follows from the
request's own logits and settings, never from who else is in the batch.
"""

import dataclasses
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
    """Places of the chosen ids in the logits, and which rows had to sort all ids."""

    places: Int[Array, " rows"]
    sorted_all: Bool[Array, " rows"]


def penalise(
    logits: Float[Array, "rows ids"],
    penalty: Float[Array, " rows"],
    said: Int[Array, "rows length"],
    used: Bool[Array, " rows"],
) -> Float[Array, "rows ids"]:
    """Applies the repetition penalty.

    Args:
      said: places in the logits of the ids of prompt and reply; beyond the logits: none.
      used: the rows that count.
    """

    def apply(logits: Array) -> Array:
        rows = jnp.arange(len(logits))[:, None]
        values = logits.at[rows, said].get(mode="clip")
        values = jnp.where(values > 0, values / penalty[:, None], values * penalty[:, None])
        return logits.at[rows, said].set(values, mode="drop")

    return jax.lax.cond(jnp.any(used & (penalty != 1)), apply, lambda same: same, logits)


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
    size = logits.shape[-1]
    greedy = settings.temperature < COLDEST
    # Whatever the size: an id is chosen alike from all logits and from a cut layer's.
    ranked = ~greedy & ((settings.top_p < 1) | (settings.top_k > 0))
    logits = logits / jnp.where(greedy, 1.0, settings.temperature)[:, None]
    likeliest = _argmax(logits)

    drawn = _where_any(used & ~greedy & ~ranked, lambda: draw(logits, uniform))
    among, fits = jax.lax.cond(
        jnp.any(used & ranked),
        lambda: _draw_ranked(logits, uniform, settings, min(CANDIDATES, size)),
        lambda: (jnp.zeros_like(likeliest), jnp.ones_like(used)),
    )
    places = jnp.where(greedy, likeliest, jnp.where(ranked, among, drawn))
    sorted_all = used & ranked & ~fits
    if size > CANDIDATES:
        among_all = _where_any(sorted_all, lambda: _draw_ranked(logits, uniform, settings, size)[0])
        places = jnp.where(sorted_all, among_all, places)
    return Choice(places, sorted_all)


def _argmax(logits: Array) -> Array:
    """Returns the first of the highest, in two passes that XLA vectorises; argmax it does not."""
    highest = jnp.max(logits, axis=-1, keepdims=True)
    numbers = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    return jnp.min(jnp.where(logits == highest, numbers, logits.shape[-1] - 1), axis=-1)


def _where_any(rows: Array, make) -> Array:
    """Places by `make` if any of the rows needs them, else zeros."""
    return jax.lax.cond(jnp.any(rows), make, lambda: jnp.zeros(len(rows), jnp.int32))


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


def _draw_ranked(
    logits: Array, uniform: Array, settings: Settings, number: int
) -> tuple[Array, Array]:
    """Draws among the `number` likeliest ids, likelier ones first, of equal ones the smaller.

    Also returns whether they hold all that top-k and top-p keep.
    """
    best, places = jax.lax.top_k(logits, number)
    chances = jnp.exp(best - best[:, :1])
    limit = jnp.where(settings.top_k > 0, settings.top_k, logits.shape[-1])
    chances = jnp.where(jnp.arange(number) < limit[:, None], chances, 0.0)
    everything = jnp.sum(jnp.exp(logits - best[:, :1]), axis=-1)
    few = limit <= number
    mass = jnp.where(few | (number == logits.shape[-1]), jnp.sum(chances, axis=-1), everything)
    sums = jnp.cumsum(chances, axis=-1)
    wanted = settings.top_p * mass
    kept = (sums - chances < wanted[:, None]).at[:, 0].set(True)
    chances = jnp.where(kept, chances, 0.0)
    # Where more ids are asked for than are at hand, their mass is not known.
    fits = few | ((settings.top_k == 0) & (sums[:, -1] >= wanted)) | (number == logits.shape[-1])
    place = _first_above(chances, uniform * jnp.sum(chances, axis=-1))
    return jnp.take_along_axis(places, place[:, None], axis=1)[:, 0], fits
