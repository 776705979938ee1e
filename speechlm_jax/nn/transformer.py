"""The one transformer: pre-norm blocks, stacked and scanned, with or without a cache.

The speech tokenizer's encoder, its ASR decoder, the text-to-token model, the language model and
the flow of the speech decoder are this stack with different configs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from speechlm_jax import config as configs
from speechlm_jax.arrays import Array, Bool, Float, Int
from speechlm_jax.errors import UserError
from speechlm_jax.nn import attention, param
from speechlm_jax.nn.attention import Attend, Layout
from speechlm_jax.nn.cache import Cache, write
from speechlm_jax.nn.decode_attention import attend as attend_cached
from speechlm_jax.nn.flash import Kernel
from speechlm_jax.nn.layers import LayerNorm, Linear, Lora, Map, NormKind, RMSNorm, make_norm
from speechlm_jax.nn.rotary import LongContext, rotate
from speechlm_jax.sharding import constrain

# Values of a block that its config may keep or offload, in the order in which they are made.
CHECKPOINTED = ("block_input", "qkv", "attended", "mlp_hidden")


@dataclasses.dataclass(frozen=True)
class ExecutionConfig:
    """How a stack is computed: what comes out differs by rounding alone, so a run may change it.

    Attributes:
      attention: the kernel over whole rows; "auto" follows the platform.
      remat: what of a block the backward pass recomputes: "none", "full" (all of it), "dots" (all
        but the products with weights).
      saved, offloaded: names of values (`CHECKPOINTED`) that "full" keeps on the device, or moves
        to the host's memory and back.
      unroll: layers per scan iteration.
      documents_at_once: of a row that cuDNN attends to in one turn; its memory grows with it, and
        rows with more documents take more turns.
    """

    attention: Kernel = "auto"
    remat: Literal["none", "full", "dots"] = "none"
    saved: tuple[str, ...] = ()
    offloaded: tuple[str, ...] = ()
    unroll: int = 1
    documents_at_once: int = 64

    def __post_init__(self) -> None:
        configs.at_least(self, 1, "unroll")
        for name in (*self.saved, *self.offloaded):
            if name not in CHECKPOINTED:
                raise UserError(f"execution: {name!r} is none of {', '.join(CHECKPOINTED)}")
        if self.documents_at_once < 2:
            raise UserError(
                f"execution.documents_at_once: {self.documents_at_once}; give 2 or more"
            )


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape of a stack of blocks, and how it is computed.

    Attributes:
      num_layers, embed, heads, kv_heads, head_dim, mlp: sizes.
      block: attention block in positions: 1 causal, larger block-causal, None bidirectional.
      rope_theta: base of rotary positions; None when positions are added to the inputs.
      rope_fraction: part of head_dim that is rotated.
      long_context: how slow rotations are stretched.
      qk_norm: whether each head's queries and keys are normalised before rotation (Qwen3).
      post_norms: whether what a block adds is normalised too (GLM-4-0414).
      norm_eps: added to the mean square (the variance) in every norm.
      cross_attention: whether each block also attends to a context.
      lora: adapters on the maps of self-attention and MLP.
      execution: no part of what the model is.
      norm: root mean square (Llama), or mean and variance with a bias (Whisper).
      mlp_kind: gated by SiLU (Llama), or two maps with an exact GELU between them (Whisper).
      biases: maps with a bias, in self- and in cross-attention: q, k, v of Qwen2 and GLM-4.
    """

    # Where fields of older versions are now (see `config.from_json`), and what they said there.
    MOVED: ClassVar[dict[str, str]] = {
        **{field.name: f"execution.{field.name}" for field in dataclasses.fields(ExecutionConfig)},
        "qkv_bias": "biases",
    }
    MEANT: ClassVar[dict[str, dict[Any, Any]]] = {"qkv_bias": {False: [], True: ["q", "k", "v"]}}

    num_layers: int
    embed: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    block: int | None = 1
    rope_theta: float | None = 10_000.0
    rope_fraction: float = 1.0
    long_context: LongContext | None = None
    qk_norm: bool = False
    post_norms: bool = False
    norm_eps: float = 1e-6
    cross_attention: bool = False
    lora: Lora | None = None
    execution: ExecutionConfig = ExecutionConfig()
    norm: NormKind = configs.added("rms")
    mlp_kind: Literal["swiglu", "gelu"] = configs.added("swiglu")
    biases: tuple[Map, ...] = configs.added(())

    def __post_init__(self) -> None:
        sizes = ("num_layers", "embed", "heads", "kv_heads", "head_dim", "mlp", "block")
        configs.at_least(self, 1, *sizes)
        configs.at_least(self, 0, "norm_eps")
        configs.above_0(self, "rope_theta")
        configs.above_0(self, "rope_fraction", most=1)
        if self.heads % self.kv_heads:
            raise UserError(f"heads: {self.heads} is no multiple of kv_heads, {self.kv_heads}")
        if self.mlp_kind == "gelu" and "gate" in self.biases:
            raise UserError("biases: gate is no map of an MLP with GELU; leave it out")
        rotated = int(self.head_dim * self.rope_fraction)
        if self.rope_theta is not None and (rotated < 2 or rotated % 2):
            raise UserError(
                f"head_dim: {rotated} of {self.head_dim} are rotated (rope_fraction); make it even"
            )

    @property
    def residual_scale(self) -> float:
        """Of the initial weights of maps whose result is added to the stream."""
        return (2 * self.num_layers) ** -0.5

    def empty_cache(self, *, rows: int, length: int, dtype: str = "float32") -> Cache:
        """Returns a cache that holds nothing, with room for `length` positions of each row."""
        return Cache.empty(
            layers=self.num_layers, kv_heads=self.kv_heads, head_dim=self.head_dim,
            rows=rows, length=length, dtype=dtype,
        )  # fmt: skip

    def adapter(self, name: str) -> Lora | None:
        """The adapter of one of a block's maps."""
        return self.lora if self.lora and name in self.lora.targets else None

    def make_norm(self) -> RMSNorm | LayerNorm:
        """Returns a norm of states."""
        return make_norm(self.norm, self.embed, eps=self.norm_eps)

    def make_map(
        self, name: Map, inputs: int, outputs: int, axes: param.Axes, *, rngs: nnx.Rngs
    ) -> Linear:
        """Returns one of a block's maps, with its bias and its adapter, if it has them."""
        scale = self.residual_scale if name in ("o", "down") else 1.0
        return Linear(
            inputs, outputs, axes, rngs=rngs, bias=name in self.biases, scale=scale,
            lora=self.adapter(name),
        )  # fmt: skip


class Attention(nnx.Module):
    """Grouped-query attention with its four projections."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        embed, width = config.embed, config.heads * config.head_dim
        kv_width, make = config.kv_heads * config.head_dim, config.make_map
        self.q = make("q", embed, width, ("embed", "heads"), rngs=rngs)
        self.k = make("k", embed, kv_width, ("embed", "kv_heads"), rngs=rngs)
        self.v = make("v", embed, kv_width, ("embed", "kv_heads"), rngs=rngs)
        self.o = make("o", width, embed, ("heads", "embed"), rngs=rngs)
        self.q_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.config = config

    def queries(
        self, x: Float[Array, "batch length embed"], positions: Int[Array, "batch length"] | None
    ) -> Float[Array, "batch length heads head_dim"]:
        """Projected (and rotated, when `positions` are given) queries."""
        q = self.q(x).reshape(*x.shape[:2], self.config.heads, self.config.head_dim)
        return self._placed(q, self.q_norm, positions)

    def keys_values(
        self, x: Float[Array, "batch length embed"], positions: Int[Array, "batch length"] | None
    ) -> tuple[
        Float[Array, "batch length kv_heads head_dim"],
        Float[Array, "batch length kv_heads head_dim"],
    ]:
        """Projected (rotated) keys, and values."""
        shape = (*x.shape[:2], self.config.kv_heads, self.config.head_dim)
        k, v = self.k(x).reshape(shape), self.v(x).reshape(shape)
        return self._placed(k, self.k_norm, positions), v

    def _placed(self, x: Array, norm: RMSNorm | None, positions: Array | None) -> Array:
        config = self.config
        x = x if norm is None else norm(x)
        if positions is None or config.rope_theta is None:
            return x
        return rotate(
            x, positions, config.rope_theta,
            fraction=config.rope_fraction, long_context=config.long_context,
        )  # fmt: skip

    def project(
        self, attended: Float[Array, "batch queries heads head_dim"]
    ) -> Float[Array, "batch queries embed"]:
        """Heads back to `embed`."""
        return self.o(attended.reshape(*attended.shape[:2], -1))


class Mlp(nnx.Module):
    """SwiGLU (Shazeer 2020), down(silu(gate(x)) * up(x)), or down(gelu(up(x)))."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        embed, mlp, make = config.embed, config.mlp, config.make_map
        gated = config.mlp_kind == "swiglu"
        self.gate = make("gate", embed, mlp, ("embed", "mlp"), rngs=rngs) if gated else None
        self.up = make("up", embed, mlp, ("embed", "mlp"), rngs=rngs)
        self.down = make("down", mlp, embed, ("mlp", "embed"), rngs=rngs)

    def __call__(self, x: Float[Array, "batch length embed"]) -> Float[Array, "batch length embed"]:
        if self.gate is None:
            hidden = jax.nn.gelu(self.up(x), approximate=False)
        else:
            hidden = jax.nn.silu(self.gate(x)) * self.up(x)
        hidden = checkpoint_name(hidden, "mlp_hidden")
        return self.down(constrain(hidden, "batch", "length", "mlp"))


class Context(NamedTuple):
    """What cross-attention reads: states, and which query sees which of them."""

    states: Float[Array, "batch keys embed"]
    mask: Bool[Array, "batch queries keys"]


class KeysValues(NamedTuple):
    """What one layer's cross-attention makes of a context."""

    k: Float[Array, "batch keys kv_heads head_dim"]
    v: Float[Array, "batch keys kv_heads head_dim"]
    mask: Bool[Array, " batch #queries keys"]


class Block(nnx.Module):
    """Attention, optional cross-attention and MLP, each normalised before and added after."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        norm = config.make_norm
        self.norm1 = norm()
        self.attention = Attention(config, rngs=rngs)
        self.post_norm1 = norm() if config.post_norms else None
        self.norm2 = norm()
        self.mlp = Mlp(config, rngs=rngs)
        self.post_norm2 = norm() if config.post_norms else None
        self.cross_norm = norm() if config.cross_attention else None
        self.cross = Attention(config, rngs=rngs) if config.cross_attention else None

    def after_attention(
        self,
        x: Float[Array, "batch length embed"],
        attended: Float[Array, "batch length embed"],
        read: KeysValues | None,
    ) -> Float[Array, "batch length embed"]:
        """Adds what self-attention found, and runs the rest of the block."""
        x = x + (attended if self.post_norm1 is None else self.post_norm1(attended))
        if self.cross is not None and self.cross_norm is not None and read is not None:
            q = self.cross.queries(self.cross_norm(x), None)
            mask = jnp.broadcast_to(read.mask, (*q.shape[:2], read.mask.shape[-1]))
            x = x + self.cross.project(attention.attend(q, read.k, read.v, mask))
        fed = self.mlp(self.norm2(x))
        x = x + (fed if self.post_norm2 is None else self.post_norm2(fed))
        return constrain(x, "batch", "length", "embed")

    def read(self, context: Context | None) -> KeysValues | None:
        """Returns a context's keys and values; None if there is no context or nobody reads it."""
        if self.cross is None or context is None:
            return None
        return KeysValues(*self.cross.keys_values(context.states, None), context.mask)

    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        positions: Int[Array, "batch length"],
        attend: Attend,
        context: Context | None,
    ) -> Float[Array, "batch length embed"]:
        """One block over whole sequences."""
        normed = self.norm1(x)
        k, v = self.attention.keys_values(normed, positions)
        q, k, v = (
            checkpoint_name(x, "qkv") for x in (self.attention.queries(normed, positions), k, v)
        )
        attended = self.attention.project(checkpoint_name(attend(q, k, v), "attended"))
        return self.after_attention(x, attended, self.read(context))


class Transformer(nnx.Module):
    """A stack of blocks; inputs and outputs have width `embed`, and are not normed.

    Whole sequences are read by a scan over stacked parameters, so that one block is compiled. With
    `stacked=False` each block's parameters stand alone, as decoding wants them: a slice of a stack
    would be a copy at each step.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, stacked: bool = True):
        self.config = config
        self.stacked = stacked
        self.blocks: Any = (
            param.stack(lambda r: Block(config, rngs=r), config.num_layers, rngs)
            if stacked
            else nnx.List([Block(config, rngs=rngs) for _ in range(config.num_layers)])
        )

    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        layout: Layout,
        context: Context | None = None,
    ) -> Float[Array, "batch length embed"]:
        """Reads whole (packed) sequences."""
        graphdef, stacked = nnx.split(self.blocks)
        execution = self.config.execution
        attend = attention.over(
            layout, self.config.block, kernel=execution.attention,
            documents_at_once=execution.documents_at_once,
            dtype=x.dtype, head_dim=self.config.head_dim,
        )  # fmt: skip

        def layer(x: Array, params: nnx.State) -> tuple[Array, None]:
            x = checkpoint_name(x, "block_input")
            return nnx.merge(graphdef, params)(x, layout.positions, attend, context), None

        if execution.remat != "none":
            layer = jax.checkpoint(layer, prevent_cse=False, policy=_policy(execution))
        return jax.lax.scan(layer, x, stacked, unroll=execution.unroll)[0]

    def layers(self) -> list[Block]:
        """Returns the blocks one by one."""
        if not self.stacked:
            return list(self.blocks)
        graphdef, stacked = nnx.split(self.blocks)
        return [
            nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[number], stacked))  # noqa: B023
            for number in range(self.config.num_layers)
        ]

    def read(self, context: Context) -> tuple[KeysValues | None, ...]:
        """Returns each layer's keys and values of a context, which `extend` reads at each step."""
        return tuple(block.read(context) for block in self.layers())

    def extend(
        self,
        x: Float[Array, "rows new embed"],
        cache: Cache,
        *,
        new: Int[Array, " rows"] | None = None,
        read: tuple[KeysValues | None, ...] | None = None,
    ) -> tuple[Float[Array, "rows new embed"], Cache]:
        """Reads the next positions of each row; equal to reading all at once.

        Args:
          cache: what the rows have read; their positions count from 0.
          new: how many of the positions count for each row: what follows them is padding, and a
            row with 0 keeps its cache as it is. None: all count.
          read: what cross-attention reads: see `Transformer.read`.
        """
        places = jnp.arange(x.shape[1])
        new = jnp.full(len(x), x.shape[1], jnp.int32) if new is None else new
        positions = cache.filled[:, None] + places
        kept = jnp.where(places < new[:, None], positions, cache.length)
        ends = jnp.where(new > 0, cache.filled + new, 0)
        ks, vs = [], []
        reads = read or (None,) * self.config.num_layers
        for block, k, v, seen in zip(self.layers(), cache.k, cache.v, reads, strict=True):
            normed = block.norm1(x)
            new_k, new_v = block.attention.keys_values(normed, positions)
            q = block.attention.queries(normed, positions)
            k, v = write(k, new_k, kept), write(v, new_v, kept)
            attended = attend_cached(q, k, v, positions, ends, self.config.block)
            x = block.after_attention(x, block.attention.project(attended), seen)
            ks.append(k)
            vs.append(v)
        return x, Cache(tuple(ks), tuple(vs), cache.filled + new)


def _policy(config: ExecutionConfig) -> Callable[..., bool] | None:
    """What the backward pass finds kept; None keeps nothing but a block's input."""
    policies = jax.checkpoint_policies
    if config.remat == "dots":
        return policies.dots_with_no_batch_dims_saveable
    if not config.saved and not config.offloaded:
        return None
    return policies.save_and_offload_only_these_names(
        names_which_can_be_saved=list(config.saved),
        names_which_can_be_offloaded=list(config.offloaded),
        offload_src="device",
        offload_dst="pinned_host",
    )
