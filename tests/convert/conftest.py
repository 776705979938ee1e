"""Tiny random models of every family, as `transformers` writes them, and what lies beside them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers

from speechlm_jax.errors import EXIT_OK

try:  # the `oracles` extra; the newest Pythons are tested without it
    import torch
    import transformers
    from safetensors.torch import save_file
except ImportError:
    torch = None

ORACLES = "needs the `oracles` extra"
SCRIPT = Path(__file__).parents[2] / "benchmarks/real_weights.py"
NO_INDEX = ("No matching distribution", "Could not find a version")  # as pip says it

SIZES = {
    "vocab_size": 40, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 64, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
LONG = {
    "rope_type": "llama3", "rope_theta": 1000.0, "factor": 4.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
CASES = {
    "llama": ("Llama", {"rope_parameters": LONG}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"rms_norm_eps": 1e-5}),
    "glm": ("Glm", {}),
    "glm4": ("Glm4", {"attention_bias": True}),
}


def stir(model):
    """Norms and biases start at ones and zeros, small matrices at nearly nothing: mistakes hide."""
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.ndim == 1:
                tensor.add_(0.3 * torch.randn_like(tensor))
            else:
                tensor.mul_(8.0)


@pytest.fixture(scope="session")
def fetch_release(tmp_path_factory):
    """fetch_release(name): the folder that the script makes of a release, and what it printed."""

    def fetch(name):
        out = tmp_path_factory.mktemp("release") / name
        command = [sys.executable, str(SCRIPT), name, "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        if any(said in done.stderr for said in NO_INDEX):
            pytest.skip(f"the package index cannot be reached: {done.stderr.splitlines()[-1]}")
        assert done.returncode == EXIT_OK, done.stderr
        return out, json.loads(done.stdout)

    return fetch


@pytest.fixture(scope="session", params=CASES)
def released(request, tmp_path_factory):
    """(model of transformers, folder that it was saved in)."""
    pytest.importorskip("torch", reason=ORACLES)
    name, more = CASES[request.param]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **more})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    stir(model)
    folder = tmp_path_factory.mktemp("released") / request.param
    model.save_pretrained(folder, max_shard_size="20KB")
    return model, folder


def save_as_chatglm(model, folder):
    """Saves a GlmForCausalLM as GLM-4's remote code names its tensors and fields."""
    state, config = model.state_dict(), model.config
    named = {
        "transformer.embedding.word_embeddings.weight": state["model.embed_tokens.weight"],
        "transformer.rotary_pos_emb.inv_freq": torch.ones(2),
        "transformer.encoder.final_layernorm.weight": state["model.norm.weight"],
        "transformer.output_layer.weight": state["lm_head.weight"],
    }
    same = {
        "self_attention.dense.weight": "self_attn.o_proj.weight",
        "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",
        "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
        "input_layernorm.weight": "input_layernorm.weight",
        "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    }
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"transformer.encoder.layers.{layer}.", f"model.layers.{layer}."
        named |= {ours + name: state[theirs + other] for name, other in same.items()}
        for kind in ("weight", "bias") if config.attention_bias else ("weight",):
            parts = [state[f"{theirs}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            named[f"{ours}self_attention.query_key_value.{kind}"] = torch.cat(parts)
    folder.mkdir(exist_ok=True)
    save_file({k: v.contiguous().clone() for k, v in named.items()}, folder / "model.safetensors")
    data = {
        "model_type": "chatglm", "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size, "ffn_hidden_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "multi_query_attention": config.num_key_value_heads != config.num_attention_heads,
        "multi_query_group_num": config.num_key_value_heads, "kv_channels": config.head_dim,
        "layernorm_epsilon": config.rms_norm_eps, "padded_vocab_size": config.vocab_size,
        "rope_ratio": config.rope_parameters["rope_theta"] / 10_000,
        "add_qkv_bias": config.attention_bias, "add_bias_linear": False, "rmsnorm": True,
        "post_layer_norm": True, "apply_residual_connection_post_layernorm": False,
        "original_rope": True, "tie_word_embeddings": False, "seq_length": 64,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(data), encoding="utf-8")


@pytest.fixture(scope="session")
def glm(tmp_path_factory):
    """(GlmForCausalLM, the same weights in a folder as GLM-4's remote code names them)."""
    pytest.importorskip("torch", reason=ORACLES)
    config = transformers.GlmConfig(**SIZES, attention_bias=True)
    torch.manual_seed(1)
    model = transformers.GlmForCausalLM(config).eval()
    stir(model)
    folder = tmp_path_factory.mktemp("glm-4-voice")
    save_as_chatglm(model, folder)
    return model, folder


SPECIALS = ("[gMASK]", "<sop>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer_files(tmp_path_factory):
    """A folder with all that stands beside a model's weights: 256 bytes, merges, specials."""
    folder = tmp_path_factory.mktemp("tokenizer")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet)
    made.train_from_iterator(["the cat of anna is in london", "what is it"], trainer)
    made.add_special_tokens(list(SPECIALS))
    made.save(str(folder / "tokenizer.json"))
    ids = made.get_vocab()
    config = {
        "tokenizer_class": "ChatGLM4Tokenizer", "auto_map": {"AutoTokenizer": ["x.Y", None]},
        "bos_token": "<sop>", "eos_token": "<|user|>", "pad_token": "<|endoftext|>",
        "additional_special_tokens": ["[gMASK]", "<|system|>"], "padding_side": "left",
        "chat_template": TEMPLATE, "add_bos_token": False,
    }  # fmt: skip
    generation = {
        "eos_token_id": [ids["<|endoftext|>"], ids["<|user|>"]], "temperature": 0.7, "top_p": 0.8,
        "pad_token_id": ids["<|endoftext|>"], "do_sample": True, "transformers_version": "4.44.0",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder
