"""A Whisper in CTranslate2's file to a folder of Hugging Face, as the released ones are."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ctranslate2_file import CTranslate2Model, read_ctranslate2

from speechlm_jax import artifacts
from speechlm_jax.convert.safetensors_folder import Planned, write_folder
from speechlm_jax.errors import UserError

GELU = 3  # CTranslate2's number of the exact one
MULTILINGUAL = 51_865  # ids of the smallest vocabulary with languages
# A map of CTranslate2, and the maps of `transformers` that it stacks.
MAPS = {
    "encoder/conv1": ("conv1",),
    "encoder/conv2": ("conv2",),
    "encoder/position_encodings": ("embed_positions",),
    "encoder/layer_norm": ("layer_norm",),
    "decoder/embeddings": ("embed_tokens",),
    "decoder/position_encodings": ("embed_positions",),
    "decoder/layer_norm": ("layer_norm",),
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
ENDS = {
    "weight": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "encodings": "weight",
}


def whisper_to_hf(*files: Path) -> int:
    """Writes weights (float32), configs and text vocabulary; returns the number of parameters.

    Args:
      files: the parts of model.bin in order, its tokenizer.json and config.json, and the folder to
        write into.

    Raises:
      UserError: the file is broken, or holds another kind of model.
    """
    *parts, tokenizer_file, config_file, out = files
    model = read_ctranslate2(parts)
    if model.spec != "WhisperSpec" or int(model.variables["decoder/activation"]) != GELU:
        raise UserError(f"{parts[0]}: holds {model.spec}, not a Whisper as it was released")
    tensors = dict(named_tensors(model))
    tokenizer = artifacts.read_json(tokenizer_file)
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    told = artifacts.read_json(config_file)
    planned = [
        Planned(name, tensor.shape, lambda tensor=tensor: tensor.astype(np.float32))
        for name, tensor in tensors.items()
    ]
    for _ in write_folder(out, planned, model_config(model, tensors, ids, told), dtype="float32"):
        pass
    artifacts.write_json(out / "generation_config.json", generation_config(ids, told, tensors))
    artifacts.write_json(out / "preprocessor_config.json", preprocessor_config(tensors))
    artifacts.write_json(out / "tokenizer.json", tokenizer)
    artifacts.write_json(out / "tokenizer_config.json", tokenizer_config())
    return sum(tensor.size for tensor in tensors.values())


def named_tensors(model: CTranslate2Model) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors with the names of `transformers`.

    Raises:
      UserError: a variable has no place in a Whisper, or a key's bias, which a Whisper lacks.
    """
    for name, variable in model.variables.items():
        if not variable.shape:  # a setting
            continue
        side = name.partition("/")[0]
        layer = re.fullmatch(r"(?:en|de)coder/layer_(\d+)/(.*)", name)
        place = f"model.{side}.layers.{layer[1]}" if layer else f"model.{side}"
        map_, _, end = (layer[2] if layer else name).rpartition("/")
        if map_ not in MAPS or end not in ENDS:
            raise UserError(f"{name}: is no variable of a Whisper that is known here")
        maps = MAPS[map_]
        for theirs, part in zip(maps, np.split(variable, len(maps)), strict=True):
            if end != "bias" or not theirs.endswith("k_proj"):
                yield f"{place}.{theirs}.{ENDS[end]}", part
            elif np.any(part):
                raise UserError(f"{name}: has a bias of the keys, which a Whisper lacks")


def model_config(
    model: CTranslate2Model,
    tensors: dict[str, np.ndarray],
    ids: dict[str, int],
    told: dict[str, Any],
) -> dict[str, Any]:
    """The data of config.json."""
    width, mels, _ = tensors["model.encoder.conv1.weight"].shape
    sizes: dict[str, int] = {}
    for side in ("encoder", "decoder"):
        layer = re.compile(rf"model\.{side}\.layers\.\d+\.fc1\.weight")
        sizes[f"{side}_layers"] = sum(bool(layer.fullmatch(name)) for name in tensors)
        sizes[f"{side}_attention_heads"] = int(model.variables[f"{side}/num_heads"])
        sizes[f"{side}_ffn_dim"] = tensors[f"model.{side}.layers.0.fc1.weight"].shape[0]
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "vocab_size": len(tensors["model.decoder.embed_tokens.weight"]),
        "num_mel_bins": mels,
        "d_model": width,
        **sizes,
        "num_hidden_layers": sizes["encoder_layers"],
        "max_source_positions": len(tensors["model.encoder.embed_positions.weight"]),
        "max_target_positions": len(tensors["model.decoder.embed_positions.weight"]),
        "activation_function": "gelu",
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "scale_embedding": False,
        "is_encoder_decoder": True,
        "use_cache": True,
        **named_ids(ids),
        "begin_suppress_tokens": told["suppress_ids_begin"],
        "dtype": "float32",
    }


def named_ids(ids: dict[str, int]) -> dict[str, int]:
    """The ids that begin, end and pad transcripts."""
    begin, end = ids["<|startoftranscript|>"], ids["<|endoftext|>"]
    return {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": begin,
    }


def generation_config(
    ids: dict[str, int], told: dict[str, Any], tensors: dict[str, np.ndarray]
) -> dict[str, Any]:
    """The data of generation_config.json: what a transcript begins with, and never holds."""
    data = {
        **named_ids(ids),
        "alignment_heads": told["alignment_heads"],
        "begin_suppress_tokens": told["suppress_ids_begin"],
        "suppress_tokens": told["suppress_ids"],
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "prev_sot_token_id": ids["<|startofprev|>"],
        "max_initial_timestamp_index": 50,
        "max_length": len(tensors["model.decoder.embed_positions.weight"]),
        "return_timestamps": False,
        "is_multilingual": False,
        "forced_decoder_ids": [[1, ids["<|notimestamps|>"]]],
    }
    if len(tensors["model.decoder.embed_tokens.weight"]) < MULTILINGUAL:
        return data
    names = {id_: name for name, id_ in ids.items()}
    tasks = {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}
    return {
        **data,
        "is_multilingual": True,
        "lang_to_id": {names[id_]: id_ for id_ in told["lang_ids"]},
        "task_to_id": tasks,
        "forced_decoder_ids": [[1, None], [2, tasks["transcribe"]]],
    }


def preprocessor_config(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """The data of preprocessor_config.json: the log-mel frames that the encoder reads."""
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": tensors["model.encoder.conv1.weight"].shape[1],
        "sampling_rate": 16_000,
        "n_fft": 400,
        "hop_length": 160,
        "chunk_length": 30,
        "n_samples": 480_000,
        "nb_max_frames": 3_000,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }


def tokenizer_config() -> dict[str, Any]:
    """The data of tokenizer_config.json."""
    end = "<|endoftext|>"
    return {
        "tokenizer_class": "WhisperTokenizer",
        "processor_class": "WhisperProcessor",
        "bos_token": end,
        "eos_token": end,
        "pad_token": end,
        "unk_token": end,
        "add_prefix_space": False,
        "errors": "replace",
        "model_max_length": 1_024,
        "clean_up_tokenization_spaces": False,
    }
