"""A Llama model in GGUF, with a byte-level vocabulary, to a folder of Hugging Face."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gguf_file import Gguf, read_gguf

from speechlm_jax import artifacts
from speechlm_jax.convert.safetensors_folder import Planned, write_folder
from speechlm_jax.errors import UserError

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
HEADS = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}
# How text is split before pieces are merged, by llama.cpp's name for it: a split at each digit.
SPLITS = {"smollm": {"type": "Digits", "individual_digits": True}}
CONTROL = 3  # type of a token that is never part of a text
NAMED = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def gguf_to_hf(source: Path, out: Path) -> int:
    """Writes weights (float32), configs and text vocabulary into `out`; returns the parameters.

    Raises:
      UserError: the file is broken, or holds another kind of model or vocabulary.
    """
    gguf = read_gguf(source)
    kinds = [gguf.fields.get(name) for name in ("general.architecture", "tokenizer.ggml.model")]
    if kinds != ["llama", "gpt2"] or gguf.fields["tokenizer.ggml.pre"] not in SPLITS:
        raise UserError(f"{source}: is no Llama model with a text vocabulary like SmolLM2's")
    planned = [
        Planned(to_hf_name(name), tensor.shape, partial(to_hf_tensor, gguf, name))
        for name, tensor in gguf.tensors.items()
    ]
    for _ in write_folder(out, planned, model_config(gguf), dtype="float32"):
        pass
    artifacts.write_json(out / "generation_config.json", named_ids(gguf))
    artifacts.write_json(out / "tokenizer.json", tokenizer(gguf))
    artifacts.write_json(out / "tokenizer_config.json", tokenizer_config(gguf))
    return sum(int(np.prod(tensor.shape)) for tensor in gguf.tensors.values())


def to_hf_name(name: str) -> str:
    """`blk.0.attn_q.weight` is `model.layers.0.self_attn.q_proj.weight`."""
    parts = name.removesuffix(".weight").split(".")
    try:
        if parts[0] == "blk":
            return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.weight"
        return f"{NAMES[parts[0]]}.weight"
    except (KeyError, IndexError):
        raise UserError(f"{name}: is no tensor of a Llama model that is known here") from None


def to_hf_tensor(gguf: Gguf, name: str) -> np.ndarray:
    """A tensor as `transformers` has it.

    llama.cpp rotates neighbouring rows of a head of queries or keys, `transformers` those that are
    half a head apart; the file holds them in the former order.
    """
    tensor = gguf.read(name)
    heads = HEADS.get(name.split(".")[-2])
    if heads is None:
        return tensor
    by_pair = tensor.reshape(gguf.fields[f"llama.{heads}"], -1, 2, tensor.shape[-1])
    return by_pair.swapaxes(1, 2).reshape(tensor.shape)


def model_config(gguf: Gguf) -> dict[str, Any]:
    """The data of config.json."""
    fields = {name.removeprefix("llama."): value for name, value in gguf.fields.items()}
    heads = fields["attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": gguf.tensors["token_embd.weight"].shape[0],
        "hidden_size": fields["embedding_length"],
        "intermediate_size": fields["feed_forward_length"],
        "num_hidden_layers": fields["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["attention.head_count_kv"],
        "head_dim": fields["embedding_length"] // heads,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": fields["context_length"],
        "rms_norm_eps": _shortest(fields["attention.layer_norm_rms_epsilon"]),
        "rope_theta": _shortest(fields["rope.freq_base"]),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        **named_ids(gguf),
        "dtype": "float32",
    }


def _shortest(number: float) -> float:
    """1e-05, of a float32 that is 9.999999747378752e-06 as a float64."""
    return float(str(np.float32(number)))


def named_ids(gguf: Gguf) -> dict[str, int]:
    """The ids that begin, end and pad texts."""
    return {
        f"{name}_token_id": gguf.fields[f"tokenizer.ggml.{NAMED[name]}_token_id"]
        for name in ("bos", "eos", "pad")
    }


def tokenizer(gguf: Gguf) -> dict[str, Any]:
    """The data of tokenizer.json."""
    fields = {name.removeprefix("tokenizer.ggml."): value for name, value in gguf.fields.items()}
    tokens: Sequence[str] = fields["tokens"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    splits = [SPLITS[fields["pre"]], {**level, "use_regex": True}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id_, "content": tokens[id_], **flags, "special": True}
            for id_, kind in enumerate(fields["token_type"])
            if kind == CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits},
        "post_processor": None,
        "decoder": {**level, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: id_ for id_, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in fields["merges"]],
        },
    }  # fmt: skip


def tokenizer_config(gguf: Gguf) -> dict[str, Any]:
    """The data of tokenizer_config.json: named tokens, and how turns of a chat are written."""
    tokens = gguf.fields["tokenizer.ggml.tokens"]
    named = {
        f"{name}_token": tokens[gguf.fields[f"tokenizer.ggml.{field}_token_id"]]
        for name, field in NAMED.items()
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "chat_template": gguf.fields["tokenizer.chat_template"],
        "model_max_length": gguf.fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
    }
