"""Encoder: mel frames -> latents, in blocks or in full (GLM-4-Voice report, section 3.1).

Convolutions (100 Hz to 50 Hz), attention, pooling, and a projection to the codebook's width where
that is another. With causal convolutions and block-causal attention a clip can be streamed: `Carry`
holds the state, so that `extend` over its blocks gives the same result as the whole clip at once.
"""

import dataclasses
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from speechlm_jax import config as configs
from speechlm_jax.arrays import Array, Bool, Float, Int
from speechlm_jax.errors import UserError
from speechlm_jax.nn.attention import Layout, whole
from speechlm_jax.nn.cache import Cache
from speechlm_jax.nn.language_model import Dtype
from speechlm_jax.nn.layers import Conv, Linear, Map, sinusoids
from speechlm_jax.nn.param import Buffer
from speechlm_jax.nn.transformer import Transformer, TransformerConfig

CONV_STRIDE = 2  # as in Whisper: 100 mel frames a second become 50 encoder frames
CONV_KERNEL = 3
FRAMES_HZ = 50  # encoder frames a second, of Whisper's mel frames
WHISPER_BIASES: tuple[Map, ...] = ("q", "v", "o", "up", "down")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the encoder up to the quantizer.

    The defaults are a small encoder of our own. `speech_tokenizer/sizes.py` has Whisper's, and
    those of the released tokenizer.

    Attributes:
      num_mels: mel bins of the input.
      layers, embed, heads, mlp: sizes of the transformer before pooling.
      pool_factor: encoder frames (50 Hz) pooled into one code: 1, 2, 4, 8 for 50 to 6.25 Hz.
      block_frames: encoder frames of an attention block, a multiple of `pool_factor`; None: a frame
        attends to the whole clip.
      latent_dim: width of the latents and of the codebook; None: they are as wide as the encoder,
        without projections.
      rope_theta: base of rotary positions in every stack; None adds `positions` instead.
      block_kind: kind of every block: Llama's (RMSNorm, SwiGLU, no biases), or Whisper's
        (LayerNorm, exact GELU, biases of all maps but the keys').
      causal: whether convolutions hear the past alone; otherwise they are centred, as in Whisper.
      positions: what is added to the frames: sinusoids at half weight, so that they do not dominate
        at small sizes, or a table of `max_frames` rows, which is Whisper's: sinusoids at whole
        weight that no gradient trains, and a trained one after the quantizer.
      max_frames: rows of that table: the longest clip, in encoder frames.
      norm_before_pooling: whether states are normalised before they are pooled.
      pooling: how.
      tail: what becomes of a last, partial group of frames: no code, or a code. Its missing frames
        are what the mel frames say, which nothing attends to.
    """

    num_mels: int = 80
    layers: int = 3
    embed: int = 144
    heads: int = 4
    mlp: int = 384
    pool_factor: int = 4
    block_frames: int | None = 32
    latent_dim: int | None = 64
    rope_theta: float | None = None
    block_kind: Literal["llama", "whisper"] = configs.added("llama")
    causal: bool = configs.added(True)
    positions: Literal["sinusoids", "table"] = configs.added("sinusoids")
    max_frames: int = configs.added(1500)
    norm_before_pooling: bool = configs.added(True)
    pooling: Literal["avg", "max"] = configs.added("avg")
    tail: Literal["drop", "pad"] = configs.added("drop")

    def __post_init__(self) -> None:
        sizes = ("num_mels", "layers", "embed", "heads", "mlp", "pool_factor", "block_frames")
        configs.at_least(self, 1, *sizes, "latent_dim", "max_frames")
        if self.block_frames is not None and self.block_frames % self.pool_factor:
            raise UserError(self._unequal_blocks(self.block_frames))
        if self.embed % self.heads:
            raise UserError(f"embed: {self.embed} is no multiple of heads, {self.heads}")
        if self.rope_theta is None and (self.embed % 2 or self.embed < 4):
            raise UserError(f"embed: {self.embed}; sinusoids take an even number from 4 on")
        if self.rope_theta is not None and self.positions == "table":
            raise UserError("positions: a table and rope_theta exclude each other; set one of them")
        self.transformer()  # checks the rest

    def _unequal_blocks(self, frames: int) -> str:
        """Returns the message for a block that holds no whole number of codes."""
        less = frames // self.pool_factor * self.pool_factor
        near = [n for n in (less, less + self.pool_factor) if n]
        said = " or ".join(f"{n} ({n / FRAMES_HZ:g} s)" for n in near)
        return (
            f"block_frames: {frames} is no multiple of pool_factor, {self.pool_factor}: a block "
            f"holds whole codes; {frames} are {frames / FRAMES_HZ:g} s, give {said}"
        )

    @property
    def width(self) -> int:
        """Width of the latents and of the codebook."""
        return self.embed if self.latent_dim is None else self.latent_dim

    @property
    def mel_frames_per_code(self) -> int:
        """Number of mel frames that one code covers."""
        return CONV_STRIDE * self.pool_factor

    @property
    def can_stream(self) -> bool:
        """Whether codes of a block can be had before the next block is heard."""
        return self.causal and self.block_frames is not None

    @property
    def block_mel_frames(self) -> int:
        """Number of mel frames of one streaming step; of one code, if attention has no blocks."""
        return CONV_STRIDE * (self.block_frames or self.pool_factor)

    @property
    def mel_multiple(self) -> int:
        """Mel frames of which the length of a batch of clips is a multiple.

        Few programs then compile, and none for more positions than the table has.
        """
        step, most = 2 * self.block_mel_frames, CONV_STRIDE * self.max_frames
        if self.positions == "sinusoids":
            return step
        return next(size for size in range(min(step, most), 0, -1) if most % size == 0)

    @property
    def max_mel_frames(self) -> int | None:
        """Mel frames of the longest clip; None: there is no limit."""
        return CONV_STRIDE * self.max_frames if self.positions == "table" else None

    @property
    def pooled_block(self) -> int | None:
        """Codes of an attention block."""
        return None if self.block_frames is None else self.block_frames // self.pool_factor

    @property
    def pooled_max_frames(self) -> int:
        """Codes of the longest clip: rows of the table after the quantizer."""
        return -(-self.max_frames // self.pool_factor)

    def num_codes(self, mel_frames: int) -> int:
        """Returns the number of codes of a clip."""
        return (mel_frames + self._filled_up) // self.mel_frames_per_code

    @property
    def _filled_up(self) -> int:
        """Mel frames that a last group may lack."""
        return self.mel_frames_per_code - 1 if self.tail == "pad" else 0

    def transformer(self) -> TransformerConfig:
        """Returns the config of the transformer before pooling."""
        whisper = self.block_kind == "whisper"
        return TransformerConfig(
            num_layers=self.layers,
            embed=self.embed,
            heads=self.heads,
            kv_heads=self.heads,
            head_dim=self.embed // self.heads,
            mlp=self.mlp,
            block=self.block_frames,
            rope_theta=self.rope_theta,
            norm="layer" if whisper else "rms",
            norm_eps=1e-5 if whisper else 1e-6,
            mlp_kind="gelu" if whisper else "swiglu",
            biases=WHISPER_BIASES if whisper else (),
        )


class Carry(NamedTuple):
    """State of a stream: the last inputs of the convolutions and the cache of the attention."""

    conv1: Float[Array, "batch past mels"]
    conv2: Float[Array, "batch past embed"]
    cache: Cache


class Encoder(nnx.Module):
    """Module from mel frames to states before pooling (for the early CTC) and to latents.

    It computes in `dtype`, whatever the mel frames come in; latents are float32.
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs, dtype: Dtype = "float32"):
        self.config, self.dtype = config, dtype
        embed, stack = config.embed, config.transformer()
        conv = partial(Conv, kernel=CONV_KERNEL, rngs=rngs, causal=config.causal)
        self.conv1 = conv(config.num_mels, embed, stride=1)
        self.conv2 = conv(embed, embed, stride=CONV_STRIDE)
        rows = jnp.arange(float(config.max_frames))
        self.table = Buffer(sinusoids(rows, embed)) if config.positions == "table" else None
        self.transformer = Transformer(stack, rngs=rngs)
        self.norm = stack.make_norm() if config.norm_before_pooling else None
        width = config.latent_dim
        self.project = Linear(embed, width, ("embed", None), rngs=rngs) if width else None

    def start(self, *, batch: int, max_mel_frames: int) -> Carry:
        """Returns the carry at the start of streams of at most `max_mel_frames` mel frames.

        Raises:
          UserError: the encoder cannot stream, or so long a stream has no positions.
        """
        config = self.config
        if not config.can_stream or config.block_frames is None:
            raise UserError(
                f"encoder: causal={config.causal}, block_frames={config.block_frames}: only an "
                "encoder with causal convolutions and blocks can stream"
            )
        blocks = -(-max_mel_frames // config.block_mel_frames)
        if config.max_mel_frames is not None and max_mel_frames > config.max_mel_frames:
            raise UserError(
                f"max_mel_frames: {max_mel_frames}; max_frames, {config.max_frames}, ends a "
                f"stream at {config.max_mel_frames}"
            )
        past, room = CONV_KERNEL - 1, blocks * config.block_frames
        return Carry(
            jnp.zeros((batch, past, config.num_mels), self.dtype),
            jnp.zeros((batch, past, config.embed), self.dtype),
            config.transformer().empty_cache(rows=batch, length=room, dtype=self.dtype),
        )

    def states(
        self, mel: Float[Array, "batch mel_frames mels"], mel_lengths: Int[Array, " batch"]
    ) -> Float[Array, "batch encoder_frames embed"]:
        """Returns the states (50 Hz) of whole clips.

        Raises:
          UserError: the clips are longer than the table of positions.
        """
        mel = mel.astype(self.dtype)
        per_code = self.config.mel_frames_per_code
        ends = mel_lengths if self.config.tail == "drop" else -(-mel_lengths // per_code) * per_code
        x = self._gelu(self.conv1(self._ended(mel, ends)))
        x = self._gelu(self.conv2(self._ended(x, ends)))
        layout = self.layout(mel_lengths, x.shape[1])
        return self._normed(self.transformer(self.add_positions(x, layout), layout))

    def layout(self, mel_lengths: Int[Array, " batch"], frames: int) -> Layout:
        """Returns where the encoder frames of clips stand.

        Frames that fill up a last group attend as the others do, and are not attended to.
        """
        heard, pool = -(-mel_lengths // CONV_STRIDE), self.config.pool_factor
        if self.config.tail == "drop":
            return whole(heard, frames)
        made = whole(-(-heard // pool) * pool, frames)
        return made._replace(seen=made.positions < heard[:, None])

    def extend(
        self,
        mel: Float[Array, "batch block_mel_frames mels"],
        carry: Carry,
        mel_frames: Int[Array, " batch"] | None = None,
    ) -> tuple[Float[Array, "batch encoder_frames embed"], Carry]:
        """Returns the states of the next whole blocks of a stream, and the new carry.

        Args:
          mel_frames: how many count: fewer than all only where a stream ends. None: all.
        """
        mel = mel.astype(self.dtype)
        x1 = self._gelu(self.conv1(mel, carry.conv1))
        x2 = self._gelu(self.conv2(x1, carry.conv2))
        new = x2.shape[1]
        positions = carry.cache.filled[:, None] + jnp.arange(new)
        layout = Layout(jnp.ones_like(positions), positions)
        heard = None if mel_frames is None else -(-mel_frames // CONV_STRIDE)
        x, cache = self.transformer.extend(self.add_positions(x2, layout), carry.cache, new=heard)
        past, states = CONV_KERNEL - 1, self._normed(x)
        if self.table is not None:  # as `latents` fills up the longest clip's last group
            states = jnp.where((positions < len(self.table[...]))[..., None], states, 0)
        return states, Carry(mel[:, -past:], x1[:, -past:], cache)

    def add_positions(
        self, x: Float[Array, "batch length embed"], layout: Layout
    ) -> Float[Array, "batch length embed"]:
        """Adds the table's rows, or sinusoids, at half weight so that they do not dominate `x`.

        Returns `x` unchanged if the stacks have rotary positions.
        """
        if self.table is not None:
            return x + rows_at(self.table[...], layout.positions).astype(x.dtype)
        return add_sinusoids(self.config, x, layout)

    def latents(
        self, states: Float[Array, "batch encoder_frames embed"]
    ) -> Float[Array, "batch frames latent_dim"]:
        """Pools states and projects them; a last partial group goes, or is filled up by zeros."""
        batch, length, embed = states.shape
        pool = self.config.pool_factor
        if self.config.tail == "pad":
            states = jnp.pad(states, ((0, 0), (0, -length % pool), (0, 0)))
        frames = states.shape[1] // pool
        groups = states[:, : frames * pool].reshape(batch, frames, pool, embed)
        pooled = groups.mean(axis=2) if self.config.pooling == "avg" else groups.max(axis=2)
        return (pooled if self.project is None else self.project(pooled)).astype(jnp.float32)

    def valid_frames(
        self, mel_lengths: Int[Array, " batch"], frames: int
    ) -> Bool[Array, "batch frames"]:
        """Returns the frame mask: true for the codes of each clip (`EncoderConfig.num_codes`)."""
        lengths = (mel_lengths + self.config._filled_up) // self.config.mel_frames_per_code
        return jnp.arange(frames)[None] < lengths[:, None]

    def _gelu(self, x: Array) -> Array:
        return jax.nn.gelu(x, approximate=self.config.block_kind != "whisper")

    def _normed(self, x: Array) -> Array:
        return x if self.norm is None else self.norm(x)

    def _ended(self, x: Array, ends: Int[Array, " batch"]) -> Array:
        """Zeros after the end of each clip, where a centred convolution would hear what is there.

        So does the end of the array: what a batch is padded to changes no clip.
        """
        if self.config.causal:
            return x
        return jnp.where((jnp.arange(x.shape[1]) < ends[:, None])[..., None], x, 0)


def add_sinusoids(
    config: EncoderConfig, x: Float[Array, "batch length embed"], layout: Layout
) -> Float[Array, "batch length embed"]:
    """Adds sinusoidal positions at half weight, unless positions are rotary."""
    if config.rope_theta is not None:
        return x
    places = layout.positions.astype(jnp.float32)
    return x + (0.5 * sinusoids(places, x.shape[-1])).astype(x.dtype)


def rows_at(
    table: Float[Array, "rows embed"], positions: Int[Array, "batch length"]
) -> Float[Array, "batch length embed"]:
    """Returns the table's row of each position; UserError if there are more positions than rows."""
    if positions.shape[1] > len(table):
        raise UserError(
            f"{positions.shape[1]} positions: the model has a table of {len(table)}; cut the "
            "recording into windows"
        )
    return table[positions]
