"""The speech tokenizer: mel -> codes -> text, as one ASR model with a quantizer in its middle.

Encoder | quantizer | the rest of the encoder | attention decoder (GLM-4-Voice report, section
3.1 and figure 1). At small sizes two CTC heads help the supervision: one for bytes before pooling
and one for text ids over the codes.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from flax import nnx

from speechlm_jax import config as configs
from speechlm_jax.arrays import Array, Bool, Float, Int
from speechlm_jax.audio.mel_config import MelConfig
from speechlm_jax.errors import UserError
from speechlm_jax.nn import param
from speechlm_jax.nn.attention import Layout, visible, whole
from speechlm_jax.nn.layers import Linear, RMSNorm
from speechlm_jax.nn.transformer import Context, Transformer, TransformerConfig
from speechlm_jax.speech_tokenizer.encoder import Carry, Encoder, EncoderConfig
from speechlm_jax.speech_tokenizer.quantizer import Quantized, Quantizer, QuantizerConfig

NUM_BYTES = 256  # classes of the early CTC, whose labels are UTF-8 bytes; its blank is the next id


@dataclasses.dataclass(frozen=True)
class SpeechTokenizerConfig:
    """Settings of the whole speech tokenizer.

    Attributes:
      text_size: number of ids of the transcripts' vocabulary; the next id is the CTC blank, and the
        decoder's start and end.
      encoder, quantizer: configs of both; `latent_dim` must equal `codebook_dim`.
      post_vq_layers: encoder layers after the quantizer.
      decoder_layers: layers of the attention decoder.
      mel: settings of the mel frames that it reads; a training takes them from its features.
    """

    # Names that fields had in older versions (see `config.from_json`).
    MOVED: ClassVar[dict[str, str]] = {"late_layers": "post_vq_layers"}

    text_size: int
    encoder: EncoderConfig = EncoderConfig()
    quantizer: QuantizerConfig = QuantizerConfig()
    post_vq_layers: int = 2
    decoder_layers: int = 2
    mel: MelConfig = configs.added(MelConfig())

    def __post_init__(self) -> None:
        configs.at_least(self, 0, "text_size")
        configs.at_least(self, 1, "post_vq_layers", "decoder_layers")
        if self.encoder.latent_dim != self.quantizer.codebook_dim:
            raise UserError(
                f"encoder.latent_dim: {self.encoder.latent_dim} is not quantizer.codebook_dim, "
                f"{self.quantizer.codebook_dim}"
            )

    @property
    def frame_rate_hz(self) -> float:
        """Number of codes a second."""
        return self.mel.mel_rate_hz / self.encoder.mel_frames_per_code

    @property
    def blank(self) -> int:
        """Id of the blank in the CTC over the codes."""
        return self.text_size

    @property
    def start(self) -> int:
        """Id that the attention decoder reads first and predicts last."""
        return self.text_size

    def stack(self, layers: int, *, block: int | None, cross: bool = False) -> TransformerConfig:
        """Returns the config of a transformer of the encoder's width."""
        return dataclasses.replace(
            self.encoder.transformer(), num_layers=layers, block=block, cross_attention=cross
        )


class TokenizerOutput(NamedTuple):
    """Output of the training pass.

    Attributes:
      latents: vectors before the lookup; `quantized` is the result of the lookup.
      frame_mask: true where all mel frames of a code are inside the clip.
      early_ctc, ctc: logits of bytes before pooling, and of text ids over the codes.
      memory: output of the whole encoder, which the attention decoder reads.
    """

    latents: Float[Array, "batch frames codebook_dim"]
    quantized: Quantized
    frame_mask: Bool[Array, "batch frames"]
    early_ctc: Float[Array, "batch encoder_frames bytes"]
    ctc: Float[Array, "batch frames classes"]
    memory: Float[Array, "batch frames embed"]


class SpeechTokenizer(nnx.Module):
    """The encoder, the quantizer, and the decoder and CTC heads that supervise them."""

    def __init__(self, config: SpeechTokenizerConfig, *, rngs: nnx.Rngs):
        self.config = config
        embed = config.encoder.embed
        classes = config.text_size + 1
        late_block = config.encoder.block_frames // config.encoder.pool_factor
        self.encoder = Encoder(config.encoder, rngs=rngs)
        self.early_ctc = Linear(embed, NUM_BYTES + 1, ("embed", None), rngs=rngs, bias=True)
        self.quantizer = Quantizer(config.quantizer, rngs=rngs)
        self.unproject = Linear(config.encoder.latent_dim, embed, (None, "embed"), rngs=rngs)
        self.late = Transformer(config.stack(config.post_vq_layers, block=late_block), rngs=rngs)
        self.late_norm = RMSNorm(embed)
        self.ctc = Linear(embed, classes, ("embed", "vocab"), rngs=rngs, bias=True)
        self.embedding = param.normal(rngs, (classes, embed), ("vocab", "embed"), stddev=1.0)
        self.decoder = Transformer(
            config.stack(config.decoder_layers, block=1, cross=True), rngs=rngs
        )
        self.decoder_norm = RMSNorm(embed)
        self.head = Linear(embed, classes, ("embed", "vocab"), rngs=rngs, bias=True)

    def mel_to_codes(
        self, mel: Float[Array, "batch mel_frames mels"], mel_lengths: Int[Array, " batch"]
    ) -> Int[Array, "batch frames"]:
        """Turns mel frames of whole clips into codes.

        `frames = mel_frames // mel_frames_per_code`, without a last partial frame. Only the first
        `mel_lengths // mel_frames_per_code` codes of a row are valid; those of padding are
        meaningless.
        """
        return self.quantizer.nearest(self.encoder.latents(self.encoder.states(mel, mel_lengths)))

    def step(
        self, carry: Carry, mel: Float[Array, "batch block_mel_frames mels"]
    ) -> tuple[Carry, Int[Array, "batch frames"]]:
        """Returns the new carry and the codes of the next whole block of a stream.

        The codes of all blocks equal `mel_to_codes` of the whole clip.
        """
        states, carry = self.encoder.extend(mel, carry)
        return carry, self.quantizer.nearest(self.encoder.latents(states))

    def memory(
        self,
        vectors: Float[Array, "batch frames codebook_dim"],
        frame_mask: Bool[Array, "batch frames"],
    ) -> Float[Array, "batch frames embed"]:
        """Runs the encoder layers after the quantizer on code vectors."""
        layout = whole(jnp.sum(frame_mask, axis=1), vectors.shape[1])
        x = self.encoder.add_positions(self.unproject(vectors), layout)
        return self.late_norm(self.late(x, layout))

    def codes_to_memory(
        self, codes: Int[Array, "batch frames"], frame_mask: Bool[Array, "batch frames"]
    ) -> Float[Array, "batch frames embed"]:
        """Returns the memory that the CTC and the attention decoder read, from codes alone."""
        return self.memory(self.quantizer.lookup(codes), frame_mask)

    def __call__(
        self, mel: Float[Array, "batch mel_frames mels"], mel_lengths: Int[Array, " batch"]
    ) -> TokenizerOutput:
        """Runs the training pass up to the attention decoder."""
        states = self.encoder.states(mel, mel_lengths)
        latents = self.encoder.latents(states)
        frame_mask = self.encoder.valid_frames(mel_lengths, latents.shape[1])
        quantized = self.quantizer(latents)
        memory = self.memory(quantized.vectors, frame_mask)
        early_ctc, ctc = self.early_ctc(states), self.ctc(memory)
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
        x = self.encoder.add_positions(self.embedding[...][ids], layout)
        return self.head(self.decoder_norm(self.decoder(x, layout, context)))
