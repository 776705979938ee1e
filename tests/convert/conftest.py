"""Tiny random models of every family, as `transformers` writes them."""

import pytest

torch = pytest.importorskip("torch", reason="needs the `torch` extra")
transformers = pytest.importorskip("transformers", reason="needs the `torch` extra")

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


@pytest.fixture(scope="session", params=CASES)
def released(request, tmp_path_factory):
    """(model of transformers, folder that it was saved in)."""
    name, more = CASES[request.param]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **more})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():  # norms and biases start at ones and zeros, which hide mistakes
        for tensor in model.parameters():
            if tensor.ndim == 1:
                tensor.add_(0.3 * torch.randn_like(tensor))
            else:
                tensor.mul_(8.0)
    folder = tmp_path_factory.mktemp("released") / request.param
    model.save_pretrained(folder, max_shard_size="20KB")
    return model, folder
