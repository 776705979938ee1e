"""The decoder-only language model that `lm` and `text_to_token` share: ids -> logits."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, TypeAlias

import jax.numpy as jnp
from flax import nnx

from speechlm_jax import config as configs
from speechlm_jax.arrays import Array, Float, Int, Shaped
from speechlm_jax.nn import param
from speechlm_jax.nn.attention import Layout
from speechlm_jax.nn.cache import Cache
from speechlm_jax.nn.layers import Linear, times_transposed
from speechlm_jax.nn.losses import PackedLoss, packed_loss
from speechlm_jax.nn.transformer import Transformer, TransformerConfig
from speechlm_jax.sharding import constrain

Dtype: TypeAlias = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig:
    """A decoder-only transformer over a vocabulary.

    Attributes:
      vocab_size: ids, padding included.
      transformer: shape of the stack.
      tied: whether the output layer is the embedding table.
      scale_embeddings: whether rows of the table are scaled to unit variance when they are read.
      dtype: dtype of activations; parameters stay float32.
    """

    vocab_size: int
    transformer: TransformerConfig
    tied: bool = True
    scale_embeddings: bool = True
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        configs.at_least(self, 0, "vocab_size")


class LanguageModel(nnx.Module):
    """Embedding, stack, final norm and output layer."""

    def __init__(self, config: LanguageModelConfig, *, rngs: nnx.Rngs, stacked: bool = True):
        self.config = config
        embed = config.transformer.embed
        self.embedding = param.normal(
            rngs, (config.vocab_size, embed), ("vocab", "embed"), stddev=embed**-0.5
        )
        self.transformer = Transformer(config.transformer, rngs=rngs, stacked=stacked)
        self.norm = config.transformer.make_norm()
        self.head = (
            None if config.tied else Linear(embed, config.vocab_size, ("embed", "vocab"), rngs=rngs)
        )

    def embed(self, ids: Int[Array, "batch length"]) -> Float[Array, "batch length embed"]:
        """Rows of the table."""
        x = self.embedding[...].astype(self.config.dtype)[ids]
        if self.config.scale_embeddings:
            x = x * self.config.transformer.embed**0.5
        return constrain(x, "batch", "length", "embed")

    @property
    def head_kernel(self) -> Shaped[Array, "embed vocab"]:
        """The output layer, in the parameters' dtype; of int8, without its scales."""
        return self.embedding[...].T if self.head is None else self.head.matrix

    def logits(self, x: Float[Array, "batch length embed"]) -> Float[Array, "batch length vocab"]:
        """Final norm and output layer, in float32."""
        x = self.norm(x)
        table = self.head_kernel.astype(x.dtype)
        if self.transformer.stacked:
            y = jnp.einsum("ble,ev->blv", x, table, preferred_element_type=jnp.float32)
        else:
            y = times_transposed(x, table.T, jnp.float32)
        if self.head is not None and self.head.kernel_scale is not None:
            y = y * self.head.kernel_scale[...]
        return constrain(y, "batch", "length", "vocab")

    def hidden(
        self, ids: Int[Array, "batch length"], layout: Layout
    ) -> Float[Array, "batch length embed"]:
        """Last states of (packed) sequences, normed: `hidden @ head_kernel` are the logits."""
        return self.norm(self.transformer(self.embed(ids), layout))

    def __call__(
        self, ids: Int[Array, "batch length"], layout: Layout
    ) -> Float[Array, "batch length vocab"]:
        """Logits of the next id at each position of (packed) sequences."""
        return self.logits(self.transformer(self.embed(ids), layout))

    def packed_loss(self, batch: Mapping[str, Array], *, z_weight: float = 0.0) -> PackedLoss:
        """The loss on packed rows: `ids`, `segments`, `positions`, `loss_mask`."""
        hidden = self.hidden(batch["ids"], Layout(batch["segments"], batch["positions"]))
        return packed_loss(hidden, self.head_kernel, batch, z_weight=z_weight)

    def extend(
        self, ids: Int[Array, "rows new"], cache: Cache, *, new: Int[Array, " rows"] | None = None
    ) -> tuple[Float[Array, "rows new embed"], Cache]:
        """Hidden states of the next positions after a cache; `logits` turns them into logits.

        Args:
          new: see `Transformer.extend`.
        """
        return self.transformer.extend(self.embed(ids), cache, new=new)


def functional(
    config: LanguageModelConfig, *, stacked: bool = True, int8: bool = False
) -> param.Functional:
    """The language model as functions of its parameters; see `Transformer` for `stacked`.

    Args:
      int8: whether the kernels are int8, with scales (`int8.quantise_kernels`).
    """

    def make(rngs: nnx.Rngs) -> LanguageModel:
        model = LanguageModel(config, rngs=rngs, stacked=stacked)
        linears = [part for _, part in nnx.iter_graph(model) if isinstance(part, Linear)]
        for linear in linears if int8 else ():
            linear.scale_outputs()
        return model

    return param.Functional(make)
