"""A model and absent slices -> memory, collectives and least time of generation.

Compiles the two programs of `nn/engine.py` as they are: `advance`, of which one step is planned,
and `read` with the longest prompts that one call takes. Weights are bfloat16 and not split along
`embed`; `tensor` splits them by heads, width and vocabulary, and the cache by heads; the other axes
split the requests.
"""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from speechlm_jax.arrays import PyTree
from speechlm_jax.errors import UserError
from speechlm_jax.nn import decoding_params, engine
from speechlm_jax.nn.cache import Cache
from speechlm_jax.nn.language_model import LanguageModelConfig
from speechlm_jax.planner.answer import answer, held_bytes
from speechlm_jax.planner.compile import Compiled, compile_program, devices
from speechlm_jax.planner.roofline import Bounds, bounds
from speechlm_jax.planner.slices import Slices
from speechlm_jax.sharding import MeshConfig, make_mesh, with_places


@dataclasses.dataclass(frozen=True)
class DecodePlan:
    """Figures of generation; all but the compiler's are projections.

    Attributes:
      requests: number of requests at a time, over all chips.
      length: number of ids that the cache has room for, prompt included.
      tensor: number of chips that share a request.
      compiled: the compiler's figures for `advance`; collectives are those of one step.
      reading: the compiler's figures for `read`.
      cache_copies: times that the two programs' texts copy a layer's keys or values.
      parts: bytes on each chip, by content.
      bounds: of one step, with a full cache.
    """

    slices: Slices
    requests: int
    length: int
    tensor: int
    compiled: Compiled
    reading: Compiled
    cache_copies: int
    parts: dict[str, int]
    bounds: Bounds

    @property
    def fits(self) -> bool:
        """True if every chip has room for both programs."""
        return self.compiled.fits and self.reading.fits

    @property
    def hbm_bytes(self) -> int:
        """Bytes that each chip needs for the larger of the two."""
        return max(self.compiled.hbm_bytes, self.reading.hbm_bytes)

    def to_json(self) -> dict[str, Any]:
        """Returns one JSON object; figures with `bound` in their names are projections."""
        return {
            **answer(self.slices, self.compiled, self.parts, self.bounds),
            "fits": self.fits,
            "hbm_bytes": self.hbm_bytes,
            "hbm_share": round(self.hbm_bytes / self.slices.chip.hbm_bytes, 4),
            "advance_hbm_bytes": self.compiled.hbm_bytes,
            "read_hbm_bytes": self.reading.hbm_bytes,
            "cache_copies": self.cache_copies,
            "read_compile_seconds": round(self.reading.seconds, 1),
            "requests": self.requests,
            "length": self.length,
            "tensor": self.tensor,
            "tokens_per_second_bound": self.requests / self.bounds.seconds,
        }


@dataclasses.dataclass(frozen=True)
class Programs:
    """The engine's programs, lowered for absent chips, and what they take.

    Attributes:
      sizes: of the engine.
      weights, slots, rules: shapes with their shardings.
      advance, read: lowered; `read` for the largest bucket.
    """

    sizes: engine.Sizes
    weights: PyTree
    slots: engine.Slots
    rules: PyTree
    advance: Any
    read: Any


def lower(model: LanguageModelConfig, mesh: Mesh, *, requests: int, length: int) -> Programs:
    """Lowers `advance` and `read` for a mesh of absent chips, as `Engine` would run them."""
    model = dataclasses.replace(model, dtype="bfloat16")
    weights, sizes = decoding_params.planned(model, mesh), engine.sizes(requests, length, mesh)
    make = partial(engine.empty_slots, weights.model.config, sizes.slots, sizes.length)
    with jax.set_mesh(mesh):  # the platform decides how keys are kept
        slots = jax.eval_shape(make)
    places = engine.slots_shardings(slots, mesh)
    slots = with_places(slots, places)

    def whole(shape: tuple[int, ...], dtype: Any) -> Any:
        where = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    rules = whole((engine.RULES, model.vocab_size), jnp.int8)
    packed = whole(sizes.packed(sizes.buckets[-1]), jnp.int32)
    read, advance = engine.programs(weights.model, mesh, places)
    with jax.set_mesh(mesh):
        return Programs(
            sizes, weights.params, slots, rules,
            advance=advance.lower(weights.params, slots, rules, None, whole((2,), jnp.int32)),
            read=read.lower(weights.params, slots, packed),
        )  # fmt: skip


def plan_decoding(
    model: LanguageModelConfig,
    slices: Slices,
    *,
    requests: int,
    length: int,
    tensor: int | None = None,
    keep: Path | None = None,
) -> DecodePlan:
    """Compiles the engine's programs for these slices.

    Args:
      requests: number of requests at a time, over all chips.
      length: number of ids that the cache has room for, prompt included.
      tensor: number of chips that share a request; None: the largest that divides the KV heads and
        the chips of a slice.
      keep: folder of earlier results; None: there is none.

    Raises:
      UserError: the model or the requests do not divide over the chips.
    """
    tensor = tensor or math.gcd(model.transformer.kv_heads, slices.chips_a_slice)
    mesh = make_mesh(MeshConfig(replica=slices.number, tensor=tensor), devices=devices(slices))
    if requests % (slices.chips // tensor):
        raise UserError(
            f"--requests: {requests} do not divide over {slices.chips // tensor} groups of {tensor}"
        )
    programs = lower(model, mesh, requests=requests, length=length)
    length = programs.sizes.length
    rest = programs.slots._replace(cache=None), programs.rules
    held = {"weights": programs.weights, "cache": programs.slots.cache, "requests": rest}
    parts = {name: held_bytes(tree) for name, tree in held.items()}
    compiled, reading = (
        compile_program(
            lowered, slices, argument_bytes=sum(parts.values()), open_trips=1, keep=keep
        )
        for lowered in (programs.advance, programs.read)
    )
    found = bounds(
        slices, flops=_flops(model, programs.weights, requests, length),
        hbm_bytes=float(parts["weights"] - _unread(model, programs.weights) + parts["cache"]),
        moved=compiled.collectives,
    )  # fmt: skip
    parts |= {"temporaries": compiled.temporary_bytes, "program": compiled.program_bytes}
    copied = _copies(programs.slots.cache, compiled) + _copies(programs.slots.cache, reading)
    return DecodePlan(slices, requests, length, tensor, compiled, reading, copied, parts, found)


def _copies(cache: Cache, compiled: Compiled) -> int:
    """Returns how many copies a program's text has of arrays as large as a layer's keys."""
    keys = cache.k[0]
    size = math.prod(keys.sharding.shard_shape(keys.shape))
    return sum(copy.count for copy in compiled.copies if copy.size == size)


def _unread(model: LanguageModelConfig, params: PyTree) -> int:
    """Returns the bytes of a table that is no output layer: a step reads only some of its rows."""
    return 0 if model.tied else held_bytes(params["embedding"])


def _flops(model: LanguageModelConfig, params: PyTree, requests: int, length: int) -> float:
    """Returns the FLOPs of one step over all chips, with a full cache."""
    stack = model.transformer
    table = 0 if model.tied else model.vocab_size * stack.embed
    weights = sum(leaf.size for leaf in jax.tree.leaves(params)) - table
    attention = 4.0 * stack.num_layers * stack.heads * stack.head_dim * length
    return requests * (2.0 * weights + attention)
