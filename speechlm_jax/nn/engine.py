"""Slots that generate at once, each request from its own arrays: the device side of decoding.

Two kinds of programs and no others. `read` takes a few requests' next ids into their slots (one
program for each padded length). `advance` adds ids to all slots, up to `MAX_STEPS` of them in one
call, and ends early when enough slots have become free. What differs between requests is data, so
any mix of them shares these programs. `nn/scheduler.py` decides which request goes where.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from speechlm_jax.arrays import Array, Bool, Float, Int, PyTree, UInt, ndarray
from speechlm_jax.nn import sampling
from speechlm_jax.nn.cache import Cache
from speechlm_jax.nn.decoding_params import Model, Weights
from speechlm_jax.nn.language_model import LanguageModel, LanguageModelConfig
from speechlm_jax.nn.sampling import Sampling, Settings
from speechlm_jax.padding import round_up
from speechlm_jax.sharding import BATCH_AXES, in_scope, row_shards

MAX_STEPS = 32  # ids of a slot that one call of `advance` can add
BUCKETS = (16, 32, 64, 128, 256, 512)  # ids that one call of `read` takes; longer prompts take more
RULES = 16  # distinct sets of allowed and stop ids that can be in use at once
FORBIDDEN, ALLOWED, STOP = 0, 1, 2  # what a rule says of an id


class Slots(NamedTuple):
    """What the device knows of each slot.

    `history[s]` holds the ids of prompt and reply; the last of them, at `cache.filled[s]`, is the
    one that is read next.

    Attributes:
      active: a request is being answered.
      made: ids of its reply so far; also the counter of its random numbers.
      limit: longest reply.
      rule: row of the engine's table of rules.
    """

    cache: Cache
    history: Int[Array, "slots length"]
    active: Bool[Array, " slots"]
    made: Int[Array, " slots"]
    limit: Int[Array, " slots"]
    rule: Int[Array, " slots"]
    seed: UInt[Array, " slots"]
    settings: Settings


class Entry(NamedTuple):
    """The next ids of one slot.

    Attributes:
      start: ids that the slot's cache keeps of what it holds.
      ids: go after them; at least one.
      starts: whether the reply begins after these ids (false: more of the prompt follows).
      limit: longest reply.
    """

    slot: int
    start: int
    ids: Sequence[int]
    starts: bool
    limit: int
    rule: int
    seed: int
    sampling: Sampling


class Report(NamedTuple):
    """What one call of `advance` did; read from one array.

    Attributes:
      ids: of each slot's reply, -1 where a step added none.
      active: which slots have not ended.
      steps: that were run.
      busy: sum over the steps of the slots that were active.
      searched: choices that had to search all ids.
    """

    ids: Int[ndarray, "slots steps"]
    active: Bool[ndarray, " slots"]
    steps: int
    busy: int
    searched: int


class _Call(NamedTuple):
    slots: Slots
    step: Array
    report: Int[Array, "slots steps"]
    busy: Array
    searched: Array


class Sizes(NamedTuple):
    """Shapes of an engine.

    Attributes:
      slots: requests that are answered at once.
      length: ids of prompt and reply that a slot has room for.
      rows: entries that one call of `read` takes; fewer are filled up with none.
      buckets: ids of an entry, padding included; ascending.
    """

    slots: int
    length: int
    rows: int
    buckets: list[int]

    def packed(self, bucket: int) -> tuple[int, int]:
        """Shape of the array that `read` takes."""
        return self.rows, _NUMBERS + bucket


# Numbers of an entry, before its ids, in the one array that `read` takes.
_FIELDS = ("slot", "start", "number", "starts", "limit", "rule", "seed", "top_k")
_FLOATS = ("temperature", "top_p", "repetition_penalty")
_NUMBERS = len(_FIELDS) + len(_FLOATS)


class Engine:
    """A language model over a fixed number of slots; its attributes are those of `Sizes`."""

    def __init__(
        self,
        weights: Weights,
        *,
        slots: int,
        length: int,
        int8_cache: bool = False,
        mesh: Mesh | None = None,
    ):
        """Makes empty slots.

        Args:
          weights: of `decoding_params.prepare`, on the same mesh.
          slots: rounded up to what divides over the mesh.
          int8_cache: whether keys and values are kept in int8 (`nn/int8.py`).
          mesh: devices over which slots are split; None: one device.
        """
        self.config = weights.model.config
        self._sizes = sizes(slots, length, mesh)
        self.slots, self.length, self.rows, self.buckets = self._sizes
        self._mesh = mesh
        self._weights = weights
        said = self.config.vocab_size if weights.subset is None else len(weights.subset)
        self._table = np.zeros((RULES, said), np.int8)
        self._rules = self._put(self._table.copy())
        self._subset = None if weights.subset is None else self._put(weights.subset)
        make = partial(empty_slots, self.config, self.slots, self.length, int8_cache=int8_cache)
        places = None if mesh is None else slots_shardings(jax.eval_shape(make), mesh)
        self._slots = jax.jit(make, out_shardings=places)()
        self._read, self._advance = programs(weights.model, mesh, places)

    def set_rule(self, number: int, allowed: Bool[ndarray, " vocab"], stops: Sequence[int]) -> None:
        """Writes a row of the table of rules: what may be said, and what ends a reply."""
        rule = np.where(allowed, ALLOWED, FORBIDDEN).astype(np.int8)
        rule[list(stops)] *= STOP  # a stop that is not allowed is never said
        subset = self._weights.subset
        self._table[number] = rule if subset is None else rule[subset]
        self._rules = self._put(self._table.copy())

    def read(self, entries: Sequence[Entry]) -> None:
        """Takes the next ids of at most `rows` slots; returns before the device has done so."""
        bucket = self.bucket(max(len(entry.ids) for entry in entries))
        packed = np.zeros(self._sizes.packed(bucket), np.int32)
        packed[:, 0] = self.slots  # no slot
        for row, entry in zip(packed, entries, strict=False):
            settings = entry.sampling
            row[: len(_FIELDS)] = (
                entry.slot, entry.start, len(entry.ids), entry.starts, entry.limit, entry.rule,
                np.uint32(entry.seed).view(np.int32), settings.top_k,
            )  # fmt: skip
            floats = [getattr(settings, name) for name in _FLOATS]
            row[len(_FIELDS) : _NUMBERS] = np.array(floats, np.float32).view(np.int32)
            row[_NUMBERS : _NUMBERS + len(entry.ids)] = entry.ids
        self._slots = self._run(self._read, self._weights.params, self._slots, self._put(packed))

    def bucket(self, number: int) -> int:
        """The length to which this many ids are padded; the largest bucket for more."""
        return next((size for size in self.buckets if number <= size), self.buckets[-1])

    def advance(self, steps: int, leave: int) -> Array:
        """Adds up to `steps` ids to each active slot; ends when `leave` slots have ended in it.

        Returns a report that `unpack` reads; it is there when the device has come so far.
        """
        self._slots, report = self._run(
            self._advance, self._weights.params, self._slots, self._rules, self._subset,
            self._put(np.array([steps, leave], np.int32)),
        )  # fmt: skip
        return report

    def _run(self, program: Callable, *arguments):
        with in_scope(self._mesh):
            return program(*arguments)

    def _put(self, x: np.ndarray) -> Array:
        """The array on every device whole."""
        where = None if self._mesh is None else NamedSharding(self._mesh, PartitionSpec())
        return jax.device_put(x, where)


def sizes(slots: int, length: int, mesh: Mesh | None) -> Sizes:
    """Returns the shapes of an engine with at least this many slots of at least this length."""
    length = round_up(length, 16)
    shards = row_shards(mesh)
    slots = round_up(slots, shards)
    buckets = [size for size in BUCKETS if size < length] or [length]
    # A product of more rows costs less for each, and more slots end at about the same time.
    rows = max(1, min(slots // 8, max(8, slots // 16)))
    return Sizes(slots, length, round_up(rows, shards), buckets)


def empty_slots(
    config: LanguageModelConfig, slots: int, length: int, *, int8_cache: bool = False
) -> Slots:
    """Returns slots in which nothing is going on."""
    zeros = jnp.zeros(slots, jnp.int32)
    dtype = "int8" if int8_cache else config.dtype
    return Slots(
        config.transformer.empty_cache(rows=slots, length=length, dtype=dtype),
        history=jnp.zeros((slots, length), jnp.int32),
        active=jnp.zeros(slots, bool),
        made=zeros,
        limit=zeros,
        rule=zeros,
        seed=jnp.zeros(slots, jnp.uint32),
        settings=Settings(jnp.zeros(slots), jnp.ones(slots), zeros, jnp.ones(slots)),
    )


def slots_shardings(slots: Slots, mesh: Mesh) -> Slots:
    """Where the slots' arrays lie: slots over `replica` and `fsdp`, heads of keys over `tensor`."""
    heads = slots.cache.k[0].shape[0]
    split = "tensor" if heads % mesh.shape["tensor"] == 0 else None

    def place(leaf: Any) -> NamedSharding:
        axes = (split, BATCH_AXES) if leaf.ndim > 2 else (BATCH_AXES,)
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(place, slots)


def unpack(report: Array) -> Report:
    """Reads a report; waits for the device."""
    told = np.asarray(report)
    return Report(told[:-1, :-1], told[:-1, -1] > 0, *told[-1, :3].tolist())


@lru_cache(maxsize=16)
def programs(
    model: Model, mesh: Mesh | None, places: Slots | None
) -> tuple[Callable[..., Slots], Callable[..., tuple[Slots, Array]]]:
    """Returns compiled `read` and `advance`, shared by all engines of one model and mesh.

    Args:
      places: of the slots on the mesh (`slots_shardings`); None without one.
    """
    reads, advances = None, None
    if mesh is not None:
        reads, advances = places, (places, NamedSharding(mesh, PartitionSpec()))
    return (
        jax.jit(partial(read, model), donate_argnums=1, out_shardings=reads),
        jax.jit(partial(advance, model), donate_argnums=1, out_shardings=advances),
    )


def read(model: Model, params: PyTree, slots: Slots, packed: Int[Array, "rows numbers"]) -> Slots:
    """Reads the ids of entries but for the last of each, which `advance` reads."""
    fields = dict(zip(_FIELDS, packed.T, strict=False))
    floats = jax.lax.bitcast_convert_type(packed[:, len(_FIELDS) : _NUMBERS], jnp.float32)
    ids = packed[:, _NUMBERS:]
    row = fields["slot"]
    number = slots.active.shape[0]

    part = slots.cache.take(row)._replace(filled=fields["start"])
    # Rows of no slot read nothing.
    new = jnp.where(row < number, fields["number"] - fields["starts"], 0)
    _, part = model.bind(params).extend(ids, part, new=new)
    places = fields["start"][:, None] + jnp.arange(ids.shape[1])
    places = jnp.where(
        jnp.arange(ids.shape[1]) < fields["number"][:, None], places, slots.history.shape[1]
    )
    told = Settings(floats[:, 0], floats[:, 1], fields["top_k"], floats[:, 2])

    def put(whole: Array, part: Array) -> Array:
        return whole.at[row].set(part.astype(whole.dtype), mode="drop")

    return Slots(
        cache=slots.cache.put(row, part),
        history=slots.history.at[row[:, None], places].set(ids, mode="drop"),
        active=put(slots.active, fields["starts"]),
        made=put(slots.made, jnp.zeros_like(row)),
        limit=put(slots.limit, fields["limit"]),
        rule=put(slots.rule, fields["rule"]),
        seed=slots.seed.at[row].set(
            jax.lax.bitcast_convert_type(fields["seed"], jnp.uint32), mode="drop"
        ),
        settings=jax.tree.map(put, slots.settings, told),
    )


def advance(
    model: Model,
    params: PyTree,
    slots: Slots,
    rules: Int[Array, "rules ids"],
    subset: Int[Array, " ids"] | None,
    limits: Int[Array, "2"],
) -> tuple[Slots, Int[Array, "slots_and_1 numbers"]]:
    """Adds ids to all slots; see `Engine.advance`."""
    bound = model.bind(params)
    number = slots.active.shape[0]
    begun = slots.active

    def goes_on(call: _Call) -> Array:
        ended = jnp.sum(begun & ~call.slots.active)
        return (call.step < limits[0]) & (ended < limits[1]) & jnp.any(call.slots.active)

    def step(call: _Call) -> _Call:
        slots, said, searched = _step(bound, call.slots, rules, subset)
        report = jax.lax.dynamic_update_slice(call.report, said[:, None], (0, call.step))
        busy = call.busy + jnp.sum(call.slots.active)
        return _Call(slots, call.step + 1, report, busy, call.searched + searched)

    zero = jnp.int32(0)
    nothing = jnp.full((number, MAX_STEPS), -1, jnp.int32)
    call = jax.lax.while_loop(goes_on, step, _Call(slots, zero, nothing, zero, zero))
    told = jnp.concatenate([call.report, call.slots.active[:, None].astype(jnp.int32)], axis=1)
    last = jnp.zeros((1, told.shape[1]), jnp.int32)
    last = last.at[0, :3].set(jnp.stack([call.step, call.busy, call.searched]))
    return call.slots, jnp.concatenate([told, last])


def _step(
    model: LanguageModel, slots: Slots, rules: Array, subset: Array | None
) -> tuple[Slots, Array, Array]:
    """One id for each active slot: (slots, the ids or -1, choices that had to search all)."""
    active, filled = slots.active, slots.cache.filled
    rows = jnp.arange(len(active))
    last = slots.history[rows, filled]
    hidden, cache = model.extend(last[:, None], slots.cache, new=active.astype(jnp.int32))
    rule = rules[slots.rule]
    logits = jnp.where(rule != FORBIDDEN, model.logits(hidden)[:, 0], -jnp.inf)
    said_before = partial(_said, slots, rules.shape[1], subset)
    logits = sampling.penalise(logits, slots.settings.penalty, said_before, active)
    choice = sampling.choose(logits, _uniform(slots), slots.settings, active)
    stopped = jnp.take_along_axis(rule, choice.places[:, None], axis=1)[:, 0] == STOP
    ids = choice.places if subset is None else subset[choice.places]
    said = active & ~stopped
    made = slots.made + said
    # A slot that says nothing writes beyond its history, which drops it.
    place = jnp.where(said, filled + 1, slots.history.shape[1])
    slots = slots._replace(
        cache=cache,
        history=slots.history.at[rows, place].set(ids, mode="drop"),
        active=said & (made < slots.limit),
        made=made,
    )
    return slots, jnp.where(said, ids, -1), jnp.sum(choice.searched)


def _uniform(slots: Slots) -> Float[Array, " slots"]:
    """A number in [0, 1) for each slot, from its request's seed and the number of its next id."""

    def draw(seed: Array, number: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), number)
        return (jax.random.bits(key, (), jnp.uint32) >> 8) * jnp.float32(2**-24)

    return jax.vmap(draw)(slots.seed, slots.made)


def _said(slots: Slots, size: int, subset: Array | None) -> Int[Array, "slots length"]:
    """Places in the logits of the ids of prompt and reply; `size` where there is none."""
    history = slots.history
    real = jnp.arange(history.shape[1]) <= slots.cache.filled[:, None]
    if subset is not None:
        places = jnp.searchsorted(subset, history)
        real &= subset.at[places].get(mode="clip") == history
        history = places
    return jnp.where(real, history, size)
