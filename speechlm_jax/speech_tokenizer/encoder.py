"""Encoder: mel frames -> latents, block by block (GLM-4-Voice report, section 3.1).

Causal convolutions (100 Hz to 50 Hz), block-causal attention, average pooling, a projection to the
codebook's width. `Carry` holds the state of a stream, so that `extend` over its blocks gives the
same result as the whole clip at once.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from speechlm_jax import config as configs
from speechlm_jax.arrays import Array, Bool, Float, Int
from speechlm_jax.errors import UserError
from speechlm_jax.nn.attention import Layout, whole
from speechlm_jax.nn.cache import Cache
from speechlm_jax.nn.layers import Conv, Linear, RMSNorm, sinusoids
from speechlm_jax.nn.transformer import Transformer, TransformerConfig

CONV_STRIDE = 2  # as in Whisper: 100 mel frames a second become 50 encoder frames
CONV_KERNEL = 3


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the encoder up to the quantizer.

    Attributes:
      num_mels: mel bins of the input.
      layers, embed, heads, mlp: sizes of the transformer before pooling.
      pool_factor: encoder frames (50 Hz) averaged into one code: 1, 2, 4, 8 for 50 to 6.25 Hz.
      block_frames: encoder frames of an attention block; a multiple of `pool_factor`.
      latent_dim: width of the latents and of the codebook.
      rope_theta: base of rotary positions in every stack; None adds sinusoids, as in Whisper.
    """

    num_mels: int = 80
    layers: int = 3
    embed: int = 144
    heads: int = 4
    mlp: int = 384
    pool_factor: int = 4
    block_frames: int = 32
    latent_dim: int = 64
    rope_theta: float | None = None

    def __post_init__(self) -> None:
        sizes = ("num_mels", "layers", "embed", "heads", "mlp", "pool_factor", "block_frames")
        configs.at_least(self, 1, *sizes, "latent_dim")
        if self.block_frames % self.pool_factor:
            raise UserError(
                f"block_frames: {self.block_frames} is no multiple of pool_factor, "
                f"{self.pool_factor}"
            )
        if self.embed % self.heads:
            raise UserError(f"embed: {self.embed} is no multiple of heads, {self.heads}")
        if self.rope_theta is None and (self.embed % 2 or self.embed < 4):
            raise UserError(f"embed: {self.embed}; sinusoids take an even number from 4 on")
        self.transformer()  # checks the rest

    @property
    def mel_frames_per_code(self) -> int:
        """Number of mel frames that one code covers."""
        return CONV_STRIDE * self.pool_factor

    @property
    def block_mel_frames(self) -> int:
        """Number of mel frames of one streaming step."""
        return CONV_STRIDE * self.block_frames

    def transformer(self) -> TransformerConfig:
        """Returns the config of the transformer before pooling."""
        return TransformerConfig(
            num_layers=self.layers,
            embed=self.embed,
            heads=self.heads,
            kv_heads=self.heads,
            head_dim=self.embed // self.heads,
            mlp=self.mlp,
            block=self.block_frames,
            rope_theta=self.rope_theta,
        )


class Carry(NamedTuple):
    """State of a stream: the last inputs of the convolutions and the cache of the attention."""

    conv1: Float[Array, "batch past mels"]
    conv2: Float[Array, "batch past embed"]
    cache: Cache


class Encoder(nnx.Module):
    """Module from mel frames to states before pooling (for the early CTC) and to latents."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        embed = config.embed
        self.conv1 = Conv(config.num_mels, embed, kernel=CONV_KERNEL, stride=1, rngs=rngs)
        self.conv2 = Conv(embed, embed, kernel=CONV_KERNEL, stride=CONV_STRIDE, rngs=rngs)
        self.transformer = Transformer(config.transformer(), rngs=rngs)
        self.norm = RMSNorm(embed)
        self.project = Linear(embed, config.latent_dim, ("embed", None), rngs=rngs)

    def start(self, *, batch: int, max_mel_frames: int) -> Carry:
        """Returns the carry at the start of streams of at most `max_mel_frames` mel frames."""
        config = self.config
        return Carry(
            jnp.zeros((batch, CONV_KERNEL - 1, config.num_mels)),
            jnp.zeros((batch, CONV_KERNEL - 1, config.embed)),
            config.transformer().empty_cache(rows=batch, length=-(-max_mel_frames // CONV_STRIDE)),
        )

    def states(
        self, mel: Float[Array, "batch mel_frames mels"], mel_lengths: Int[Array, " batch"]
    ) -> Float[Array, "batch encoder_frames embed"]:
        """Returns the states (50 Hz) of whole clips."""
        x = jax.nn.gelu(self.conv2(jax.nn.gelu(self.conv1(mel))))
        layout = whole(-(-mel_lengths // CONV_STRIDE), x.shape[1])
        return self.norm(self.transformer(self.add_positions(x, layout), layout))

    def extend(
        self, mel: Float[Array, "batch block_mel_frames mels"], carry: Carry
    ) -> tuple[Float[Array, "batch encoder_frames embed"], Carry]:
        """Returns the states of the next whole block of a stream, and the new carry."""
        x1 = jax.nn.gelu(self.conv1(mel, carry.conv1))
        x2 = jax.nn.gelu(self.conv2(x1, carry.conv2))
        new = x2.shape[1]
        positions = carry.cache.filled[:, None] + jnp.arange(new)
        layout = Layout(jnp.ones_like(positions), positions)
        x, cache = self.transformer.extend(self.add_positions(x2, layout), carry.cache)
        past = CONV_KERNEL - 1
        return self.norm(x), Carry(mel[:, -past:], x1[:, -past:], cache)

    def add_positions(
        self, x: Float[Array, "batch length embed"], layout: Layout
    ) -> Float[Array, "batch length embed"]:
        """Adds sinusoidal positions, at half weight so that they do not dominate `x`.

        Returns `x` unchanged if the stacks have rotary positions.
        """
        if self.config.rope_theta is not None:
            return x
        return x + 0.5 * sinusoids(layout.positions.astype(jnp.float32), x.shape[-1])

    def latents(
        self, states: Float[Array, "batch encoder_frames embed"]
    ) -> Float[Array, "batch frames latent_dim"]:
        """Pools states by average and projects them; drops the frames of a last partial group."""
        batch, length, embed = states.shape
        frames = length // self.config.pool_factor
        groups = states[:, : frames * self.config.pool_factor]
        return self.project(
            groups.reshape(batch, frames, self.config.pool_factor, embed).mean(axis=2)
        )

    def valid_frames(
        self, mel_lengths: Int[Array, " batch"], frames: int
    ) -> Bool[Array, "batch frames"]:
        """Returns the frame mask: true where all mel frames of a code are inside the clip."""
        lengths = mel_lengths // self.config.mel_frames_per_code
        return jnp.arange(frames)[None] < lengths[:, None]
