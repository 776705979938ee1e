"""The speech tokenizer: mel -> codes -> text, as one ASR model with a quantizer in its middle.

Encoder | quantizer | the rest of the encoder | attention decoder (GLM-4-Voice report, section
3.1 and figure 1). At small sizes two CTC heads help the supervision: one for bytes before pooling
and one for text ids over the codes. Without the quantizer, and with Whisper's blocks, positions
and text side, it is Whisper: fine-tuning from it changes fields of the config and keeps weights.
"""

import dataclasses
from functools import partial
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer

from speechlm_jax import config as configs
from speechlm_jax.arrays import Array, Bool, Float, Int
from speechlm_jax.audio.mel_config import MelConfig
from speechlm_jax.errors import UserError
from speechlm_jax.nn import param
from speechlm_jax.nn.attention import Layout, visible, whole
from speechlm_jax.nn.cache import Cache
from speechlm_jax.nn.language_model import Dtype
from speechlm_jax.nn.layers import Linear
from speechlm_jax.nn.transformer import Context, KeysValues, Transformer, TransformerConfig
from speechlm_jax.speech_tokenizer.encoder import (
    CONV_STRIDE,
    Carry,
    Encoder,
    EncoderConfig,
    add_sinusoids,
    rows_at,
)
from speechlm_jax.speech_tokenizer.quantizer import Quantized, Quantizer, QuantizerConfig

NUM_BYTES = 256  # classes of the early CTC, whose labels are UTF-8 bytes; its blank is the next id


@dataclasses.dataclass(frozen=True)
class WhisperText:
    """How Whisper writes: its ids that are no text, and its trained positions.

    Attributes:
      prompt: ids that the decoder reads first: start, language and task, and that it shall write
        without times; of an English model, start and that alone.
      end: id that ends a transcript.
      suppressed: ids that are never written.
      suppressed_first: ids that do not begin a transcript, beside those.
      max_ids: positions of the decoder, prompt included.
    """

    prompt: tuple[int, ...]
    end: int
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    max_ids: int = 448

    def __post_init__(self) -> None:
        configs.at_least(self, 0, "end")
        configs.at_least(self, 1, "max_ids")
        if not 0 < len(self.prompt) < self.max_ids:
            raise UserError(
                f"prompt: {len(self.prompt)} ids; give at least 1, and fewer than max_ids, "
                f"{self.max_ids}"
            )

    @property
    def ids(self) -> tuple[int, ...]:
        """All ids that are named here."""
        return (*self.prompt, self.end, *self.suppressed, *self.suppressed_first)


@dataclasses.dataclass(frozen=True)
class SpeechTokenizerConfig:
    """Settings of the whole speech tokenizer.

    Attributes:
      text_size: number of ids of the transcripts' vocabulary; the next id is the CTC blank, and the
        decoder's start and end. Of Whisper's text side it is all ids: those are among them.
      encoder, quantizer: configs of both; the codebook is as wide as the latents. Without a
        quantizer the layers after it read the latents themselves.
      post_vq_layers: encoder layers after the quantizer; 0: none, and no norm that ends them.
      decoder_layers: layers of the attention decoder; 0: there is none.
      mel: settings of the mel frames that it reads; a training takes them from its features.
      dtype: dtype of activations; parameters, and distances to the codebook, stay float32.
      text: Whisper's text side, with the embedding as output layer; None: our own.
      has_ctc: whether there are the two CTC heads.
    """

    # Names that fields had in older versions (see `config.from_json`).
    MOVED: ClassVar[dict[str, str]] = {"late_layers": "post_vq_layers"}

    text_size: int
    encoder: EncoderConfig = EncoderConfig()
    quantizer: QuantizerConfig | None = QuantizerConfig()
    post_vq_layers: int = 2
    decoder_layers: int = 2
    mel: MelConfig = configs.added(MelConfig())
    dtype: Dtype = configs.added("float32")
    text: WhisperText | None = configs.added(None)
    has_ctc: bool = configs.added(True)

    def __post_init__(self) -> None:
        configs.at_least(self, 0, "text_size", "post_vq_layers", "decoder_layers")
        width = self.encoder.width
        if self.quantizer is not None and width != self.quantizer.codebook_dim:
            found = self.encoder.latent_dim or f"null (as wide as embed, {width})"
            raise UserError(
                f"encoder.latent_dim: {found} is not quantizer.codebook_dim, "
                f"{self.quantizer.codebook_dim}"
            )
        if self.text is not None and self.text_size:
            wrong = [id_ for id_ in self.text.ids if not 0 <= id_ < self.text_size]
            if wrong:
                raise UserError(
                    f"text: has id {wrong[0]}; text_size is {self.text_size}, so ids end at "
                    f"{self.text_size - 1}"
                )

    @property
    def frame_rate_hz(self) -> float:
        """Number of codes a second."""
        return self.mel.mel_rate_hz / self.encoder.mel_frames_per_code

    @property
    def samples_per_frame(self) -> int:
        """Samples that one code covers."""
        return self.mel.hop_length * self.encoder.mel_frames_per_code

    def padded_samples(self, samples: int) -> int:
        """Returns the length to which zeros fill up a clip before its mel frames are computed.

        Where a last partial group has a code (`tail`), all mel frames of the group are then there;
        the clip's own are `ceil(samples / hop_length)`. No clip becomes longer than the longest.
        """
        if self.encoder.tail == "drop":
            return samples
        filled = samples + -samples % self.samples_per_frame
        most = self.encoder.max_mel_frames
        return filled if most is None else max(samples, min(filled, most * self.mel.hop_length))

    def num_codes(self, samples: int) -> int:
        """Returns the number of codes of a clip."""
        if self.encoder.tail == "pad":
            return -(-samples // self.samples_per_frame)
        return self.encoder.num_codes(samples // self.mel.hop_length)

    @property
    def classes(self) -> int:
        """Ids that the attention decoder knows."""
        return self.text_size if self.text is not None else self.text_size + 1

    @property
    def blank(self) -> int:
        """Id of the blank in the CTC over the codes."""
        return self.text_size

    @property
    def start(self) -> int:
        """Id that the attention decoder reads first; ours also predicts it last."""
        return self.text_size if self.text is None else self.text.prompt[0]

    def stack(self, layers: int, *, block: int | None, cross: bool = False) -> TransformerConfig:
        """Returns the config of a transformer of the encoder's width."""
        return dataclasses.replace(
            self.encoder.transformer(), num_layers=layers, block=block, cross_attention=cross
        )


class TokenizerOutput(NamedTuple):
    """Output of the training pass.

    Attributes:
      latents: vectors before the lookup; `quantized` is the result of the lookup, None without a
        quantizer.
      frame_mask: true for the codes of each clip.
      early_ctc, ctc: logits of bytes before pooling, and of text ids over the codes; None without
        CTC heads.
      memory: output of the whole encoder, which the attention decoder reads.
    """

    latents: Float[Array, "batch frames codebook_dim"]
    quantized: Quantized | None
    frame_mask: Bool[Array, "batch frames"]
    early_ctc: Float[Array, "batch encoder_frames bytes"] | None
    ctc: Float[Array, "batch frames classes"] | None
    memory: Float[Array, "batch frames embed"]


class SpeechTokenizer(nnx.Module):
    """The encoder, the quantizer, and the decoder and CTC heads that supervise them.

    With `stacked=False` the layers of the attention decoder stand alone, as decoding wants them.
    """

    def __init__(self, config: SpeechTokenizerConfig, *, rngs: nnx.Rngs, stacked: bool = True):
        self.config = config
        encoder, text, has_ctc = config.encoder, config.text, config.has_ctc
        embed, width = encoder.embed, encoder.latent_dim
        self.encoder = Encoder(encoder, rngs=rngs, dtype=config.dtype)
        self.early_ctc = _head(embed, NUM_BYTES + 1, None, rngs=rngs) if has_ctc else None
        self.quantizer = Quantizer(config.quantizer, rngs=rngs) if config.quantizer else None
        self.unproject = Linear(width, embed, (None, "embed"), rngs=rngs) if width else None
        late = config.stack(config.post_vq_layers or 1, block=encoder.pooled_block)
        self.table = self._second_table()
        self.late = Transformer(late, rngs=rngs) if config.post_vq_layers else None
        self.late_norm = late.make_norm() if config.post_vq_layers else None
        self.ctc = _head(embed, config.classes, "vocab", rngs=rngs) if has_ctc else None
        if not config.decoder_layers:
            self.decoder = None
            return
        spread = 1.0 if text is None else embed**-0.5
        table = partial(param.normal, rngs, axes=("vocab", "embed"), stddev=spread)
        self.embedding = table((config.classes, embed))
        self.text_table = (
            None if text is None else table((text.max_ids, embed), axes=(None, "embed"))
        )
        decoder = config.stack(config.decoder_layers, block=1, cross=True)
        self.decoder = Transformer(decoder, rngs=rngs, stacked=stacked)
        self.decoder_norm = decoder.make_norm()
        self.head = _head(embed, config.classes, "vocab", rngs=rngs) if text is None else None

    def _second_table(self) -> nnx.Param | None:
        """Positions of the layers after the quantizer, at first those of the encoder's table."""
        first = self.encoder.table
        if first is None or self.quantizer is None:
            return None
        return nnx.Param(first[: self.config.encoder.pooled_max_frames], logical=(None, "embed"))

    def mel_to_codes(
        self, mel: Float[Array, "batch mel_frames mels"], mel_lengths: Int[Array, " batch"]
    ) -> Int[Array, "batch frames"]:
        """Turns mel frames of whole clips into codes.

        Only the first `EncoderConfig.num_codes(mel_lengths)` codes of a row are valid; those of
        padding are meaningless. Where a last partial group has a code (`tail`), a row's mel frames
        go on to the group's end (`SpeechTokenizerConfig.padded_samples`), and count as padding.

        Raises:
          UserError: the model has no quantizer.
        """
        return self._nearest(self.encoder.latents(self.encoder.states(mel, mel_lengths)))

    def step(
        self,
        carry: Carry,
        mel: Float[Array, "batch block_mel_frames mels"],
        mel_frames: Int[Array, " batch"] | None = None,
    ) -> tuple[Carry, Int[Array, "batch frames"]]:
        """Returns the new carry and the codes of the next whole blocks of a stream.

        The codes of all blocks equal `mel_to_codes` of the whole clip. Where the number of frames
        heard is not known while the program is compiled (in `jax.jit`), codes past the room of
        `Encoder.start` are -1.

        Args:
          mel_frames: how many of them count: fewer than all only where a stream ends, and then
            codes beyond `EncoderConfig.num_codes` of them are meaningless. None: all.

        Raises:
          ValueError: the mel frames are no whole blocks, or there is no room for them.
        """
        size = self.config.encoder.block_mel_frames
        if mel.shape[1] == 0 or mel.shape[1] % size:
            raise ValueError(f"{mel.shape[1]} mel frames: a step takes whole blocks of {size}")
        heard = mel.shape[1] if mel_frames is None else mel_frames
        ends, room = carry.cache.filled + -(-heard // CONV_STRIDE), carry.cache.length
        if self.config.encoder.positions == "table":
            room = min(room, self.config.encoder.max_frames)
        late = ends > room
        if not isinstance(late, Tracer) and late.any():
            raise ValueError(
                f"the stream has {int(ends.max()) * CONV_STRIDE} mel frames with these; there is "
                f"room for {room * CONV_STRIDE} (max_mel_frames)"
            )
        states, carry = self.encoder.extend(mel, carry, mel_frames)
        codes = self._nearest(self.encoder.latents(states))
        return carry, jnp.where(late[:, None], -1, codes)

    def _nearest(self, latents: Float[Array, "batch frames width"]) -> Int[Array, "batch frames"]:
        if self.quantizer is None:
            raise UserError("quantizer: this model has none, so it makes no codes")
        return self.quantizer.nearest(latents)

    def memory(
        self,
        vectors: Float[Array, "batch frames codebook_dim"],
        frame_mask: Bool[Array, "batch frames"],
    ) -> Float[Array, "batch frames embed"]:
        """Runs the encoder layers after the quantizer on code vectors (or on latents)."""
        layout = whole(jnp.sum(frame_mask, axis=1), vectors.shape[1])
        x = vectors.astype(self.config.dtype)
        x = x if self.unproject is None else self.unproject(x)
        if self.table is not None:
            x = x + rows_at(self.table[...], layout.positions).astype(x.dtype)
        elif self.encoder.table is None:
            x = add_sinusoids(self.config.encoder, x, layout)
        if self.late is None or self.late_norm is None:
            return x
        return self.late_norm(self.late(x, layout))

    def codes_to_memory(
        self, codes: Int[Array, "batch frames"], frame_mask: Bool[Array, "batch frames"]
    ) -> Float[Array, "batch frames embed"]:
        """Returns the memory that the CTC and the attention decoder read, from codes alone."""
        if self.quantizer is None:
            raise UserError("quantizer: this model has none, so it reads no codes")
        return self.memory(self.quantizer.lookup(codes), frame_mask)

    def mel_to_memory(
        self, mel: Float[Array, "batch mel_frames mels"], mel_lengths: Int[Array, " batch"]
    ) -> tuple[Float[Array, "batch frames embed"], Bool[Array, "batch frames"]]:
        """Returns the memory of clips and its frame mask: through the codes, if there are any."""
        latents = self.encoder.latents(self.encoder.states(mel, mel_lengths))
        frame_mask = self.encoder.valid_frames(mel_lengths, latents.shape[1])
        if self.quantizer is None:
            return self.memory(latents, frame_mask), frame_mask
        return self.codes_to_memory(self._nearest(latents), frame_mask), frame_mask

    def __call__(
        self, mel: Float[Array, "batch mel_frames mels"], mel_lengths: Int[Array, " batch"]
    ) -> TokenizerOutput:
        """Runs the training pass up to the attention decoder."""
        states = self.encoder.states(mel, mel_lengths)
        latents = self.encoder.latents(states)
        frame_mask = self.encoder.valid_frames(mel_lengths, latents.shape[1])
        quantized = None if self.quantizer is None else self.quantizer(latents)
        vectors = latents if quantized is None else quantized.vectors
        memory = self.memory(vectors, frame_mask)
        early_ctc = None if self.early_ctc is None else self.early_ctc(states.astype(jnp.float32))
        ctc = None if self.ctc is None else self.ctc(memory.astype(jnp.float32))
        return TokenizerOutput(latents, quantized, frame_mask, early_ctc, ctc, memory)

    def read(
        self,
        memory: Float[Array, "batch frames embed"],
        frame_mask: Bool[Array, "batch frames"],
        ids: Int[Array, "batch length"],
        lengths: Int[Array, " batch"],
    ) -> Float[Array, "batch length classes"]:
        """Returns the decoder's teacher-forced logits; `ids` must begin with `config.start`."""
        layout = whole(lengths, ids.shape[1])
        keys = Layout(frame_mask.astype(jnp.int32), jnp.zeros(frame_mask.shape, jnp.int32))
        context = Context(memory, visible(layout, keys, None))
        return self._logits(self._decoder(self._embed(ids, layout), layout, context))

    def read_memory(
        self, memory: Float[Array, "batch frames embed"], frame_mask: Bool[Array, "batch frames"]
    ) -> tuple[KeysValues | None, ...]:
        """Returns what `extend` reads of a memory at each step, made once."""
        return self._decoder.read(Context(memory, frame_mask[:, None]))

    def extend(
        self,
        ids: Int[Array, "rows new"],
        cache: Cache,
        read: tuple[KeysValues | None, ...],
    ) -> tuple[Float[Array, "rows new classes"], Cache]:
        """Returns the logits after the next ids of each row, as `read` would, and the new cache."""
        positions = cache.filled[:, None] + jnp.arange(ids.shape[1])
        x = self._embed(ids, Layout(jnp.ones_like(positions), positions))
        x, cache = self._decoder.extend(x, cache, read=read)
        return self._logits(x), cache

    @property
    def _decoder(self) -> Transformer:
        if self.decoder is None:
            raise UserError("decoder_layers: this model has no attention decoder")
        return self.decoder

    def _embed(
        self, ids: Int[Array, "batch length"], layout: Layout
    ) -> Float[Array, "batch length embed"]:
        x = self.embedding[...].astype(self.config.dtype)[ids]
        if self.text_table is None:
            return add_sinusoids(self.config.encoder, x, layout)
        return x + rows_at(self.text_table[...], layout.positions).astype(x.dtype)

    def _logits(
        self, x: Float[Array, "batch length embed"]
    ) -> Float[Array, "batch length classes"]:
        x = self.decoder_norm(x)
        if self.head is not None:
            return self.head(x.astype(jnp.float32))
        table = self.embedding[...].astype(x.dtype)
        return jnp.einsum("ble,ve->blv", x, table, preferred_element_type=jnp.float32)


def _head(embed: int, classes: int, axis: str | None, *, rngs: nnx.Rngs) -> Linear:
    return Linear(embed, classes, ("embed", axis), rngs=rngs, bias=True)
