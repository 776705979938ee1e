"""A model and absent slices -> memory, collectives and least time of one step of generation.

The step is that of `nn/decode.py`: it reads one id of every request, writes its keys and values to
the cache and chooses the next id. Weights are bfloat16 and not split along `embed`; `tensor` splits
them by heads, width and vocabulary, and the cache by heads; the other axes split the requests.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from speechlm_jax.arrays import Array, Int, PyTree
from speechlm_jax.errors import UserError
from speechlm_jax.nn import attention
from speechlm_jax.nn.language_model import LanguageModelConfig, functional
from speechlm_jax.nn.transformer import Cache
from speechlm_jax.planner.answer import answer, held_bytes
from speechlm_jax.planner.compile import Compiled, compile_program, devices
from speechlm_jax.planner.roofline import Bounds, bounds
from speechlm_jax.planner.slices import Slices
from speechlm_jax.sharding import BATCH_AXES, PARAM_RULES, MeshConfig, make_mesh, param_shardings

RULES = {**PARAM_RULES, "embed": None}


@dataclasses.dataclass(frozen=True)
class DecodePlan:
    """Figures of a step of generation; all but the compiler's are projections.

    Attributes:
      requests: number of requests at a time, over all chips.
      length: number of ids that the cache has room for, prompt included.
      tensor: number of chips that share a request.
      parts: bytes on each chip, by content.
    """

    slices: Slices
    requests: int
    length: int
    tensor: int
    compiled: Compiled
    parts: dict[str, int]
    bounds: Bounds

    @property
    def fits(self) -> bool:
        """True if every chip has room for it."""
        return self.compiled.fits

    def to_json(self) -> dict[str, Any]:
        """Returns one JSON object; figures with `bound` in their names are projections."""
        return {
            **answer(self.slices, self.compiled, self.parts, self.bounds),
            "requests": self.requests,
            "length": self.length,
            "tensor": self.tensor,
            "tokens_per_second_bound": self.requests / self.bounds.seconds,
        }


def plan_decoding(
    model: LanguageModelConfig,
    slices: Slices,
    *,
    requests: int,
    length: int,
    tensor: int | None = None,
    keep: Path | None = None,
) -> DecodePlan:
    """Compiles a step of generation for these slices.

    Args:
      requests: number of requests at a time, over all chips.
      length: number of ids that the cache has room for, prompt included.
      tensor: number of chips that share a request; None: the largest that divides the KV heads and
        the chips of a slice.
      keep: folder of earlier results; None: there is none.

    Raises:
      UserError: the model or the requests do not divide over the chips.
    """
    kv_heads = model.transformer.kv_heads
    tensor = tensor or math.gcd(kv_heads, slices.chips_a_slice)
    mesh = make_mesh(MeshConfig(replica=slices.number, tensor=tensor), devices=devices(slices))
    if requests % (slices.chips // tensor):
        raise UserError(
            f"--requests: {requests} do not divide over {slices.chips // tensor} groups of {tensor}"
        )
    params, cache = _shapes(model, mesh, requests, length)
    rows = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    ids = jax.ShapeDtypeStruct((requests, 1), jnp.int32, sharding=rows)
    parts = {name: held_bytes(tree) for name, tree in {"weights": params, "cache": cache}.items()}
    # The compiler chooses the cache's layout, as in the loop of `generate`: in the default layout
    # the cache would be copied at both ends of every step.
    own = jax.tree.map(lambda leaf: Format(Layout.AUTO, leaf.sharding), cache)
    with jax.set_mesh(mesh):
        step = jax.jit(
            decode_step(model), donate_argnums=3,
            in_shardings=(_shardings(params), rows, rows, own), out_shardings=(rows, own),
        )  # fmt: skip
        lowered = step.lower(params, ids, ids, cache)
    compiled = compile_program(
        lowered, slices, argument_bytes=sum(parts.values()) + 2 * held_bytes(ids), keep=keep
    )
    found = bounds(
        slices, flops=_flops(model, params, requests, length),
        hbm_bytes=float(sum(parts.values()) - _unread(model, params)), moved=compiled.collectives,
    )  # fmt: skip
    parts |= {"temporaries": compiled.temporary_bytes, "program": compiled.program_bytes}
    return DecodePlan(slices, requests, length, tensor, compiled, parts, found)


def _shardings(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def decode_step(
    model: LanguageModelConfig,
) -> Callable[[PyTree, Array, Array, Cache], tuple[Array, Cache]]:
    """Returns a function from (params, last ids, positions, cache) to (likeliest ids, cache)."""
    made = functional(model)

    def step(
        params: PyTree,
        ids: Int[Array, "batch new"],
        positions: Int[Array, "batch new"],
        cache: Cache,
    ) -> tuple[Int[Array, "batch new"], Cache]:
        bound = made.bind(params)
        hidden, cache = bound.extend(ids, attention.Layout(jnp.ones_like(ids), positions), cache)
        return jnp.argmax(bound.logits(hidden), axis=-1).astype(ids.dtype), cache

    return step


def _shapes(
    model: LanguageModelConfig, mesh: Mesh, requests: int, length: int
) -> tuple[PyTree, Cache]:
    """Returns the shapes of weights and cache, with their shardings."""
    made = functional(model)
    places = param_shardings(made.shapes, made.axes, mesh=mesh, rules=RULES)
    params = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=where),
        made.shapes, places,
    )  # fmt: skip
    heads = "tensor" if model.transformer.kv_heads % mesh.shape["tensor"] == 0 else None

    def placed(leaf: Any) -> Any:
        axes = {5: (None, BATCH_AXES, heads), 2: (BATCH_AXES,), 0: ()}[leaf.ndim]
        where = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    empty = jax.eval_shape(
        lambda: Cache.empty(
            model.transformer, batch=requests, slots=length, dtype=jnp.dtype("bfloat16")
        )
    )
    return params, jax.tree.map(placed, empty)


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
