"""A config.json of Whisper, or of GLM-4-Voice's tokenizer <-> that of our speech tokenizer."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from speechlm_jax.audio.mel_config import MelConfig
from speechlm_jax.convert.folder_files import shown
from speechlm_jax.convert.model_config import Fields
from speechlm_jax.errors import UserError
from speechlm_jax.speech_tokenizer.encoder import EncoderConfig
from speechlm_jax.speech_tokenizer.model import SpeechTokenizerConfig, WhisperText
from speechlm_jax.speech_tokenizer.quantizer import QuantizerConfig

PLAIN, CODER = "WhisperForConditionalGeneration", "WhisperVQEncoder"
WITH_CODES = "WhisperVQForConditionalGeneration"
# Fields for which our model supports only these values; an absent field has the first.
ONLY: Mapping[str, tuple[Any, ...]] = {
    "activation_function": ("gelu",),
    "scale_embedding": (False,),
    "is_encoder_decoder": (True,),
    "tie_word_embeddings": (True,),
    "encoder_causal_attention": (False,),
    "quantize_causal_encoder": (False,),
    "quantization_config": (None,),
}
# Sizes that encoder and decoder have in common.
ALIKE = {
    "encoder_attention_heads": "decoder_attention_heads",
    "encoder_ffn_dim": "decoder_ffn_dim",
}
# Special tokens of a prompt in English without times, by their names in tokenizer.json.
PROMPT = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
ENGLISH_VOCAB = 51_864  # ids of the models of English alone, which take no language and no task


def config_from_json(
    data: Mapping[str, Any],
    where: str,
    *,
    generation: Mapping[str, Any] | None = None,
    tokens: Mapping[str, int] | None = None,
    has_decoder: bool = True,
) -> SpeechTokenizerConfig:
    """Returns our config from the data of a config.json.

    Args:
      generation: data of generation_config.json: ids that are not written.
      tokens: id of each token of the text vocabulary, for the prompt.
      has_decoder: whether the folder has more than an encoder up to its codebook.

    Raises:
      UserError: the model has a feature that ours lacks, or a field has a wrong type or value.
    """
    for name, known in ONLY.items():
        if name in data and data[name] not in known:
            raise UserError(f"{where}: {name} is {shown(data[name])}; only {known[0]!r} is known")
    fields = Fields(data, where, {"max_source_positions": 1500, "max_target_positions": 448})
    for one, other in ALIKE.items() if has_decoder else ():
        if fields.count(one) != fields.count(other):
            raise UserError(
                f"{where}: {one} is {data[one]}, {other} {data[other]}; only equal ones are known"
            )
    encoder, layers = _encoder(fields), fields.count("encoder_layers")
    quantizer = None
    if data.get("quantize_vocab_size") is not None:
        size = fields.count("quantize_vocab_size")
        decay = fields.number("quantize_ema_decay", 0.99)
        quantizer = QuantizerConfig.released(codebook_size=size, codebook_dim=encoder.embed)
        quantizer = dataclasses.replace(quantizer, ema_decay=decay)
    text = _text(fields, generation or {}, tokens or {}) if has_decoder else None
    try:
        return SpeechTokenizerConfig(
            text_size=fields.count("vocab_size") if has_decoder else 0,
            encoder=encoder,
            quantizer=quantizer,
            post_vq_layers=layers - encoder.layers if has_decoder else 0,
            decoder_layers=fields.count("decoder_layers") if has_decoder else 0,
            mel=MelConfig(num_mels=encoder.num_mels),
            text=text,
            has_ctc=False,
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _encoder(fields: Fields) -> EncoderConfig:
    data, layers = fields.data, fields.count("encoder_layers")
    has_codes = data.get("quantize_vocab_size") is not None
    pool = fields.count("pooling_kernel_size", 1)
    early = fields.count("quantize_position", 16) if has_codes else max(1, layers // 2)
    if pool > 1 and fields.count("pooling_position") != early:
        raise UserError(
            f"{fields.where}: pooling_position is {data['pooling_position']}, quantize_position "
            f"{early}; only equal ones are known"
        )
    if early > layers:
        raise UserError(f"{fields.where}: quantize_position is {early} of {layers} layers")
    pooling = data.get("pooling_type", "max") if pool > 1 else "avg"
    if pooling not in ("avg", "max"):
        raise UserError(f"{fields.where}: pooling_type is {shown(pooling)}, not 'avg' or 'max'")
    block = data.get("quantize_causal_block_size")
    try:
        return EncoderConfig(
            num_mels=fields.count("num_mel_bins"),
            layers=early,
            embed=fields.count("d_model"),
            heads=fields.count("encoder_attention_heads"),
            mlp=fields.count("encoder_ffn_dim"),
            pool_factor=pool,
            block_frames=None if block is None else fields.count("quantize_causal_block_size"),
            latent_dim=None,
            block_kind="whisper",
            causal=fields.flag("encoder_causal_convolution", default=False),
            positions="table",
            max_frames=fields.count("max_source_positions"),
            norm_before_pooling=False,
            pooling=pooling,
            tail="pad",
        )
    except UserError as error:
        raise UserError(f"{fields.where}: {error}") from None


def _text(fields: Fields, generation: Mapping[str, Any], tokens: Mapping[str, int]) -> WhisperText:
    """Returns the text side; a prompt is of ids that the vocabulary names."""
    told = {**fields.data, **{k: v for k, v in generation.items() if v is not None}}
    start = told.get("decoder_start_token_id")
    names = (
        PROMPT if PROMPT[1] in tokens and generation.get("is_multilingual", True) else PROMPT[::3]
    )
    prompt = [tokens[name] for name in names if name in tokens]
    if not prompt or prompt[0] != start:
        prompt = [start, *prompt[1:]] if prompt else [start]
    end = told.get("eos_token_id")
    end = end[0] if isinstance(end, list) and end else end
    lists = {name: told.get(name) or [] for name in ("suppress_tokens", "begin_suppress_tokens")}
    numbers = [*prompt, end, *lists["suppress_tokens"], *lists["begin_suppress_tokens"]]
    if not all(type(id_) is int for id_ in numbers):
        raise UserError(
            f"{fields.where}: decoder_start_token_id, eos_token_id, suppress_tokens and "
            "begin_suppress_tokens must be ids"
        )
    kept = {name: tuple(id_ for id_ in ids if id_ >= 0) for name, ids in lists.items()}
    return WhisperText(
        prompt=tuple(prompt),
        end=end,
        suppressed=kept["suppress_tokens"],
        suppressed_first=kept["begin_suppress_tokens"],
        max_ids=fields.count("max_target_positions"),
    )


def config_to_json(config: SpeechTokenizerConfig, *, dtype: str) -> dict[str, Any]:
    """Returns the config.json with which `transformers` (or GLM-4-Voice) reads a model.

    Raises:
      UserError: neither has such a model; the message names the fields.
    """
    _check_exported(config)
    encoder, quantizer, text = config.encoder, config.quantizer, config.text
    layers = encoder.layers + config.post_vq_layers
    made: dict[str, Any] = {
        "architectures": [_architecture(config)],
        "model_type": "whisper",
        "activation_function": "gelu",
        "num_mel_bins": encoder.num_mels,
        "d_model": encoder.embed,
        "encoder_layers": layers,
        "encoder_attention_heads": encoder.heads,
        "encoder_ffn_dim": encoder.mlp,
        "max_source_positions": encoder.max_frames,
        "num_hidden_layers": layers,
        "is_encoder_decoder": True,
        "scale_embedding": False,
        "dtype": dtype,
    }
    if text is not None and config.decoder_layers:
        made |= {
            "vocab_size": config.text_size,
            "decoder_layers": config.decoder_layers,
            "decoder_attention_heads": encoder.heads,
            "decoder_ffn_dim": encoder.mlp,
            "max_target_positions": text.max_ids,
            "decoder_start_token_id": text.prompt[0],
            "bos_token_id": text.end,
            "eos_token_id": text.end,
            "pad_token_id": text.end,
        }
    if quantizer is not None:
        made |= {
            "pooling_kernel_size": encoder.pool_factor,
            "pooling_type": encoder.pooling,
            "pooling_position": encoder.layers,
            "quantize_vocab_size": quantizer.codebook_size,
            "quantize_position": encoder.layers,
            "quantize_ema_decay": quantizer.ema_decay,
            "quantize_encoder_only": not config.decoder_layers,
            "quantize_causal_block_size": encoder.block_frames,
            "encoder_causal_convolution": encoder.causal,
            "encoder_causal_attention": False,
            "quantize_causal_encoder": False,
        }
    return made


def generation_to_json(text: WhisperText) -> dict[str, Any]:
    """Returns the generation_config.json of a text side."""
    return {
        "decoder_start_token_id": text.prompt[0],
        "bos_token_id": text.end,
        "eos_token_id": text.end,
        "pad_token_id": text.end,
        "max_length": text.max_ids,
        "suppress_tokens": list(text.suppressed) or None,
        "begin_suppress_tokens": list(text.suppressed_first) or None,
    }


def _architecture(config: SpeechTokenizerConfig) -> str:
    if config.quantizer is None:
        return PLAIN
    return WITH_CODES if config.decoder_layers else CODER


def _check_exported(config: SpeechTokenizerConfig) -> None:
    """Raises UserError if a model is neither Whisper nor a tokenizer made from it."""
    encoder, plain = config.encoder, config.quantizer is None
    wanted = {
        "encoder.block_kind": (encoder.block_kind, "whisper"),
        "encoder.positions": (encoder.positions, "table"),
        "encoder.latent_dim": (encoder.latent_dim, None),
        "encoder.norm_before_pooling": (encoder.norm_before_pooling, False),
        "has_ctc": (config.has_ctc, False),
    }
    if plain:
        wanted |= {
            "encoder.causal": (encoder.causal, False),
            "encoder.block_frames": (encoder.block_frames, None),
            "encoder.pool_factor": (encoder.pool_factor, 1),
        }
    if (plain or config.post_vq_layers) and (not config.decoder_layers or config.text is None):
        wanted["text"] = (config.text, "Whisper's, with a decoder")
    wrong = [
        f"{name}={found} (not {only})" for name, (found, only) in wanted.items() if found != only
    ]
    if wrong:
        raise UserError(
            f"model: {', '.join(wrong)}: only Whisper, and tokenizers made from it, can be written"
        )
