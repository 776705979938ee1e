"""Every option of a config.json is taken over as `transformers` takes it, or refused by name."""

import dataclasses

import pytest

from speechlm_jax.convert.families import FAMILIES, QKV, family_of
from speechlm_jax.convert.model_config import ONLY, ONLY_OF, config_from_json, config_to_json
from speechlm_jax.errors import UserError
from speechlm_jax.nn.language_model import LanguageModelConfig
from speechlm_jax.nn.rotary import LongContext
from speechlm_jax.nn.transformer import TransformerConfig

transformers = pytest.importorskip("transformers", reason="needs the `oracles` extra")

CLASSES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "glm": "Glm", "glm4": "Glm4"}
NEEDED = {
    "vocab_size": 64, "hidden_size": 128, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 32,
}  # fmt: skip
CHATGLM = {
    "padded_vocab_size": 64, "hidden_size": 128, "ffn_hidden_size": 48, "num_layers": 2,
    "num_attention_heads": 4, "kv_channels": 8, "layernorm_epsilon": 1e-5, "model_type": "chatglm",
    "multi_query_attention": True, "multi_query_group_num": 2,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# Fields that change no logits of a whole sequence, or that are read here.
KNOWN = {
    *NEEDED, "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_parameters", "layer_types",
    "tie_word_embeddings", "attention_bias", "max_position_embeddings", "attention_dropout",
    "initializer_range", "use_cache", "sliding_window", "max_window_layers", "pretraining_tp",
    "pad_token_id", "bos_token_id", "eos_token_id", *ONLY,
}  # fmt: skip


def read(kind, **fields):
    start = CHATGLM if kind == "chatglm" else {**NEEDED, "model_type": kind}
    return config_from_json({**start, **fields}, "there")[1]


@pytest.mark.parametrize("kind", CLASSES)
def test_no_field_of_transformers_is_overlooked(kind):
    theirs = getattr(transformers, f"{CLASSES[kind]}Config")
    fields = {field.name for field in dataclasses.fields(theirs)}
    common = {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
    assert fields - common <= KNOWN | set(ONLY_OF[kind])


@pytest.mark.parametrize("kind", CLASSES)
def test_what_a_config_leaves_out_is_what_transformers_takes(kind):
    theirs = getattr(transformers, f"{CLASSES[kind]}Config")(**NEEDED)
    ours, stack = read(kind), read(kind).transformer
    heads = theirs.num_attention_heads
    assert stack.kv_heads == theirs.num_key_value_heads
    assert stack.head_dim == (getattr(theirs, "head_dim", None) or theirs.hidden_size // heads)
    assert stack.norm_eps == theirs.rms_norm_eps and ours.tied == theirs.tie_word_embeddings
    assert stack.rope_theta == theirs.rope_parameters["rope_theta"]
    assert stack.rope_fraction == theirs.rope_parameters.get("partial_rotary_factor", 1.0)
    bias = kind == "qwen2" or theirs.attention_bias
    assert stack.biases == (QKV if bias else ())


@pytest.mark.parametrize(
    "fields, found",
    [
        ({"rope_theta": 500.0}, (500.0, None)),
        ({"rope_theta": 500.0, "rope_parameters": {"rope_theta": 7.0}}, (7.0, None)),
        ({"rope_scaling": None, "rope_parameters": None}, (10_000.0, None)),
        ({"rope_scaling": {"type": "default"}, "rope_parameters": LLAMA3}, (10_000.0, None)),
        (
            {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 16}},
            (10_000.0, LongContext(4.0, 1.0, 4.0, 16)),
        ),
        (
            {"rope_parameters": LLAMA3, "max_position_embeddings": 32},
            (10_000.0, LongContext(4.0, 1.0, 4.0, 32)),
        ),
    ],
    ids=str,
)
def test_rotary_positions_stand_in_old_and_new_places(fields, found):
    stack = read("llama", **fields).transformer
    assert (stack.rope_theta, stack.long_context) == found
    theirs = transformers.LlamaConfig(**NEEDED, **fields).rope_parameters
    assert theirs["rope_theta"] == stack.rope_theta
    if stack.long_context:
        assert theirs["original_max_position_embeddings"] == stack.long_context.length


@pytest.mark.parametrize(
    "kind, fields, told",
    [
        ("llama", {"attention_bias": True}, "attention_bias is True; only False"),
        ("llama", {"mlp_bias": True}, "mlp_bias is True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; a llama"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ("llama", {"rope_parameters": {"full_attention": {}}}, "rope_parameters has 'full_att"),
        ("llama", {"rope_parameters": 3}, "rope_parameters is 3, not an object"),
        ("llama", {"rope_parameters": {**LLAMA3, "factor": None}}, "has no field factor"),
        ("llama", {"rope_scaling": {**LLAMA3, "high_freq_factor": 1}}, "low_freq_factor is 1.0"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config is"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window is True"),
        ("qwen2", {"rope_scaling": {"type": "mrope"}}, "rope_type is 'mrope'"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is"),
        ("qwen3", {"attention_bias": True}, "attention_bias is True"),
        ("glm", {"head_dim": 6}, "of head_dim 6 rotates 3 dimensions"),
        ("glm", {"partial_rotary_factor": 1.5}, "partial_rotary_factor 1.5"),
        ("glm4", {"attention_bias": "yes"}, "attention_bias is 'yes', not true or false"),
        ("chatglm", {"add_bias_linear": True}, "add_bias_linear is True"),
        ("chatglm", {"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ("chatglm", {"pre_seq_len": 8}, "pre_seq_len is 8"),
        ("chatglm", {"quantization_bit": 4}, "quantization_bit is 4"),
        ("llama", {"num_key_value_heads": 5}, "32 attention heads cannot share 5"),
        ("llama", {"model_type": "mamba"}, "model_type 'mamba' is none of llama"),
        ("llama", {"model_type": ["llama"]}, "is none of llama"),
        ("llama", {"vocab_size": 10**40}, "vocab_size is 1000"),
        ("llama", {"vocab_size": None}, "has no field vocab_size"),
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers is 0, not a whole number"),
        ("llama", {"num_hidden_layers": True}, "num_hidden_layers is True"),
        ("llama", {"hidden_size": 128.0}, "hidden_size is 128.0"),
        ("llama", {"hidden_size": "x\ny" * 99}, "hidden_size is 'x"),
        ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, not a number above 0"),
        ("llama", {"rope_theta": float("inf")}, "rope_theta is inf"),
        ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings is 1, not true or false"),
        ("chatglm", {"rope_ratio": 10**400}, "rope_ratio is 1000"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_feature_that_is_not_ours_is_refused_by_its_name(kind, fields, told):
    with pytest.raises(UserError, match=told) as error:
        read(kind, **fields)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_comes_in_leaves_as_the_same_model(kind):
    """Whatever is written, `transformers` reads, and we read it as what it was."""
    for bias in (False, True) if len(FAMILIES[kind].biases) > 1 else (None,):
        key = "add_qkv_bias" if kind == "chatglm" else "attention_bias"
        config = read(kind, **({} if bias is None else {key: bias}))
        data = config_to_json(config, dtype="float32", length=64)
        assert config_from_json(data, "there")[1] == config
        theirs = transformers.AutoConfig.for_model(**data)
        assert theirs.to_dict()["architectures"] == [family_of(config).architecture]


@pytest.mark.parametrize(
    "change, told",
    [
        ({"block": None}, "block=None"),
        ({"rope_theta": None}, "rope_theta=None"),
        ({"cross_attention": True}, "cross_attention=True"),
        ({"qk_norm": True, "biases": QKV}, r"biases=\('q', 'k', 'v'\), qk_norm=True"),
        ({"qk_norm": True, "rope_fraction": 0.5}, "rope_fraction=0.5"),
    ],
    ids=str,
)
def test_a_model_that_no_family_has_is_not_written(change, told):
    stack = dataclasses.replace(TransformerConfig(1, 16, 2, 2, 8, 32), **change)
    with pytest.raises(UserError, match=f"model.transformer: .*{told}"):
        family_of(LanguageModelConfig(64, stack))
