"""Sizes of Whisper, and of speech tokenizers made from it, as configs of our one model.

Sizes: Radford et al., arXiv 2212.04356, table 1, and the releases after it. Codebooks: GLM-4-Voice
report, table 1 (12, 12, 14 and 16 bits a code).
"""

import dataclasses
from typing import Literal, NamedTuple, TypeAlias, get_args

from speechlm_jax.audio.mel_config import MelConfig
from speechlm_jax.errors import UserError
from speechlm_jax.nn.language_model import Dtype
from speechlm_jax.speech_tokenizer.encoder import FRAMES_HZ, EncoderConfig
from speechlm_jax.speech_tokenizer.model import SpeechTokenizerConfig, WhisperText
from speechlm_jax.speech_tokenizer.quantizer import QuantizerConfig

Size: TypeAlias = Literal[
    "tiny", "tiny.en", "base", "small", "medium", "large-v3", "large-v3-turbo"
]
SIZES: tuple[Size, ...] = get_args(Size)
# Codes a second -> entries of the codebook.
CODEBOOKS = {50.0: 4096, 25.0: 4096, 12.5: 16_384, 6.25: 65_536}
BLOCK_FRAMES = 200


class Shape(NamedTuple):
    """Shape of a released Whisper."""

    embed: int
    heads: int
    layers: int
    decoder_layers: int
    num_mels: int
    vocab: int


SHAPES: dict[Size, Shape] = {
    "tiny": Shape(384, 6, 4, 4, 80, 51_865),
    "tiny.en": Shape(384, 6, 4, 4, 80, 51_864),
    "base": Shape(512, 8, 6, 6, 80, 51_865),
    "small": Shape(768, 12, 12, 12, 80, 51_865),
    "medium": Shape(1024, 16, 24, 24, 80, 51_865),
    "large-v3": Shape(1280, 20, 32, 32, 128, 51_866),
    "large-v3-turbo": Shape(1280, 20, 32, 4, 128, 51_866),
}
# Prompts in English, without times; ids of `tokenizer.json` of each vocabulary.
TEXTS = {
    51_864: WhisperText((50_257, 50_362), end=50_256),
    51_865: WhisperText((50_258, 50_259, 50_359, 50_363), end=50_257),
    51_866: WhisperText((50_258, 50_259, 50_360, 50_364), end=50_257),
}


def whisper(size: Size, *, dtype: Dtype = "float32") -> SpeechTokenizerConfig:
    """Returns plain Whisper of a size: no quantizer, centred convolutions, full attention.

    Half of the encoder's layers stand where those after a quantizer would, so that a tokenizer
    of the same size (`speech_tokenizer`) has the same parameters, and its own beside them.
    """
    shape = SHAPES[size]
    encoder = EncoderConfig(
        num_mels=shape.num_mels,
        layers=shape.layers // 2,
        embed=shape.embed,
        heads=shape.heads,
        mlp=4 * shape.embed,
        pool_factor=1,
        block_frames=None,
        latent_dim=None,
        block_kind="whisper",
        causal=False,
        positions="table",
        norm_before_pooling=False,
        tail="pad",
    )
    return SpeechTokenizerConfig(
        text_size=shape.vocab,
        encoder=encoder,
        quantizer=None,
        post_vq_layers=shape.layers - shape.layers // 2,
        decoder_layers=shape.decoder_layers,
        mel=MelConfig(num_mels=shape.num_mels),
        dtype=dtype,
        text=TEXTS[shape.vocab],
        has_ctc=False,
    )


def speech_tokenizer(
    size: Size,
    *,
    frame_rate_hz: float = 12.5,
    block_frames: int = BLOCK_FRAMES,
    dtype: Dtype = "float32",
) -> SpeechTokenizerConfig:
    """Returns the speech tokenizer that is made from a Whisper: quantized after half its layers.

    Args:
      frame_rate_hz: codes a second: 50, 25, 12.5 or 6.25.
      block_frames: encoder frames (50 Hz) of an attention block. The report says 2 s (100 frames),
        the config of the released weights 200; neither source was corrected. The default is
        that of the weights: they make the codes that others have, and 100 frames are no whole
        number of codes at 6.25 Hz.
    """
    if frame_rate_hz not in CODEBOOKS:
        said = ", ".join(f"{rate:g}" for rate in CODEBOOKS)
        raise UserError(f"frame_rate_hz: {frame_rate_hz:g} is none of {said}")
    plain = whisper(size, dtype=dtype)
    encoder = dataclasses.replace(
        plain.encoder,
        pool_factor=round(FRAMES_HZ / frame_rate_hz),
        block_frames=block_frames,
        causal=True,
    )
    quantizer = QuantizerConfig.released(
        codebook_size=CODEBOOKS[frame_rate_hz], codebook_dim=encoder.embed
    )
    return dataclasses.replace(plain, encoder=encoder, quantizer=quantizer)


def encoder_only(config: SpeechTokenizerConfig) -> SpeechTokenizerConfig:
    """Returns what makes codes of a speech tokenizer, without what reads them.

    Of `speech_tokenizer("large-v3")` that is the released encoder: 343,599,360 parameters, which
    are its table after the quantizer too.
    """
    return dataclasses.replace(
        config, text_size=0, post_vq_layers=0, decoder_layers=0, text=None, has_ctc=False
    )
