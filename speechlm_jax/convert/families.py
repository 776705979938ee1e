"""Model families of Hugging Face: their config fields, and which tensor holds what.

GLM-4 (as released with remote code, and as `GlmForCausalLM`), GLM-4-0414, Llama 3, Qwen2 and Qwen3
are our one transformer with different switches. Where they rotate neighbouring dimensions of a head
against each other (GLM-4), rows of the query and key projections are put in another order, which
changes no score; see `Tensor.neighbours`.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from speechlm_jax.errors import UserError
from speechlm_jax.nn.language_model import LanguageModelConfig
from speechlm_jax.nn.rotary import LongContext
from speechlm_jax.nn.transformer import TransformerConfig

BLOCKS = "transformer/blocks/"
QKV = ("q", "k", "v")
LAYER = "{layer}"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A foreign tensor, and the parameters that lie in it one after another (along its axis 0).

    Attributes:
      name: with `{layer}` where there is one in each layer.
      ours: paths of the parameters, joined by "/"; those of a layer are stacked over layers.
      transposed: a matrix [out, in]; ours are [in, out].
      neighbours: which of `ours` rotate neighbouring dimensions against each other there.
      absent: the file may lack it, because it is the same as another tensor.
    """

    name: str
    ours: tuple[str, ...]
    transposed: bool = True
    neighbours: tuple[str, ...] = ()
    absent: bool = False


@dataclasses.dataclass(frozen=True)
class Family:
    """A family's names.

    Attributes:
      model_type: in config.json.
      architecture: class of `transformers` that reads it.
      switches: what tells its models from those of other families, as fields of TransformerConfig.
    """

    model_type: str
    architecture: str
    switches: Mapping[str, Any]

    def tensors(self, config: LanguageModelConfig) -> tuple[Tensor, ...]:
        """Every tensor of a model."""
        if self.model_type == "chatglm":
            return tuple(_chatglm(config))
        return tuple(_transformers(config, interleaved=self.model_type in ("glm", "glm4")))


PLAIN = {
    "qkv_bias": False, "qk_norm": False, "post_norms": False, "rope_fraction": 1.0,
}  # fmt: skip
GLM = {**PLAIN, "rope_fraction": 0.5, "qkv_bias": True}
FAMILIES = {
    family.model_type: family
    for family in (
        Family("llama", "LlamaForCausalLM", PLAIN),
        Family("qwen2", "Qwen2ForCausalLM", {**PLAIN, "qkv_bias": True}),
        Family("qwen3", "Qwen3ForCausalLM", {**PLAIN, "qk_norm": True}),
        Family("glm", "GlmForCausalLM", GLM),
        Family("glm4", "Glm4ForCausalLM", {**GLM, "post_norms": True}),
        Family("chatglm", "ChatGLMModel", GLM),
    )
}
EXPORTED = ("llama", "qwen2", "qwen3", "glm", "glm4")


def family_of(config: LanguageModelConfig) -> Family:
    """The family as which a model can be written; UserError if no family has its switches."""
    stack = config.transformer
    switches = {name: getattr(stack, name) for name in PLAIN}
    for name in EXPORTED:
        if FAMILIES[name].switches == switches:
            return FAMILIES[name]
    raise UserError(f"model.transformer: no Hugging Face family has all of {switches}")


def _transformers(config: LanguageModelConfig, *, interleaved: bool) -> Iterator[Tensor]:
    """Names of `transformers`; those with interleaved rotation also fuse gate and up."""
    stack = config.transformer
    yield Tensor("model.embed_tokens.weight", ("embedding",), transposed=False)
    layer = f"model.layers.{LAYER}."
    for part in QKV:
        ours, turned = f"{BLOCKS}attention/{part}/", interleaved and part != "v"
        for kind in ("kernel", "bias") if stack.qkv_bias else ("kernel",):
            name = f"{layer}self_attn.{part}_proj.{'weight' if kind == 'kernel' else kind}"
            path = ours + kind
            yield Tensor(name, (path,), kind == "kernel", (path,) if turned else ())
        if stack.qk_norm and part != "v":
            path = f"{BLOCKS}attention/{part}_norm/scale"
            yield Tensor(f"{layer}self_attn.{part}_norm.weight", (path,), transposed=False)
    yield Tensor(f"{layer}self_attn.o_proj.weight", (f"{BLOCKS}attention/o/kernel",))
    gate, up = (f"{BLOCKS}mlp/{part}/kernel" for part in ("gate", "up"))
    if interleaved:
        yield Tensor(f"{layer}mlp.gate_up_proj.weight", (gate, up))
    else:
        yield Tensor(f"{layer}mlp.gate_proj.weight", (gate,))
        yield Tensor(f"{layer}mlp.up_proj.weight", (up,))
    yield Tensor(f"{layer}mlp.down_proj.weight", (f"{BLOCKS}mlp/down/kernel",))
    norms = {"input_layernorm": "norm1", "post_attention_layernorm": "norm2"}
    if stack.post_norms:
        norms |= {"post_self_attn_layernorm": "post_norm1", "post_mlp_layernorm": "post_norm2"}
    for theirs, ours in norms.items():
        yield Tensor(f"{layer}{theirs}.weight", (f"{BLOCKS}{ours}/scale",), transposed=False)
    yield Tensor("model.norm.weight", ("norm/scale",), transposed=False)
    if config.tied:
        yield Tensor("lm_head.weight", (), absent=True)
    else:
        yield Tensor("lm_head.weight", ("head/kernel",))


def _chatglm(config: LanguageModelConfig) -> Iterator[Tensor]:
    """Names of GLM-4's remote code, in which `glm-4-voice-9b` is released."""
    yield Tensor("transformer.embedding.word_embeddings.weight", ("embedding",), transposed=False)
    yield Tensor("transformer.rotary_pos_emb.inv_freq", (), absent=True)
    layer = f"transformer.encoder.layers.{LAYER}."
    for kind, theirs in (("kernel", "weight"), ("bias", "bias")):
        if kind == "bias" and not config.transformer.qkv_bias:
            continue
        q, k, v = (f"{BLOCKS}attention/{part}/{kind}" for part in QKV)
        name = f"{layer}self_attention.query_key_value.{theirs}"
        yield Tensor(name, (q, k, v), kind == "kernel", (q, k))
    yield Tensor(f"{layer}self_attention.dense.weight", (f"{BLOCKS}attention/o/kernel",))
    gate, up = (f"{BLOCKS}mlp/{part}/kernel" for part in ("gate", "up"))
    yield Tensor(f"{layer}mlp.dense_h_to_4h.weight", (gate, up))
    yield Tensor(f"{layer}mlp.dense_4h_to_h.weight", (f"{BLOCKS}mlp/down/kernel",))
    for theirs, ours in (("input_layernorm", "norm1"), ("post_attention_layernorm", "norm2")):
        yield Tensor(f"{layer}{theirs}.weight", (f"{BLOCKS}{ours}/scale",), transposed=False)
    yield Tensor("transformer.encoder.final_layernorm.weight", ("norm/scale",), transposed=False)
    yield Tensor("transformer.output_layer.weight", ("head/kernel",))


def config_from_json(data: Mapping[str, Any], where: str) -> tuple[Family, LanguageModelConfig]:
    """Family and config from the data of a config.json.

    Raises:
      UserError: it is of another family, or has a feature that our transformer lacks.
    """
    family = FAMILIES.get(str(data.get("model_type")))
    if family is None:
        raise UserError(
            f"{where}: model_type {data.get('model_type')!r} is none of {', '.join(FAMILIES)}"
        )
    try:
        made = _from_chatglm(data) if family.model_type == "chatglm" else _from_fields(family, data)
    except KeyError as error:
        raise UserError(f"{where}: has no field {error.args[0]}") from None
    _refuse_other_features(data, where)
    return family, made


def _from_fields(family: Family, data: Mapping[str, Any]) -> LanguageModelConfig:
    rope = {**data, **(data.get("rope_scaling") or {}), **(data.get("rope_parameters") or {})}
    heads, embed = data["num_attention_heads"], data["hidden_size"]
    switches = dict(family.switches)
    if family.model_type in ("glm", "glm4"):
        switches["qkv_bias"] = data.get("attention_bias", False)
    stack = TransformerConfig(
        num_layers=data["num_hidden_layers"],
        embed=embed,
        heads=heads,
        kv_heads=data.get("num_key_value_heads") or heads,
        head_dim=data.get("head_dim") or embed // heads,
        mlp=data["intermediate_size"],
        rope_theta=float(rope.get("rope_theta", 10_000.0)),
        long_context=_long_context(rope),
        norm_eps=float(data["rms_norm_eps"]),
        **{**switches, "rope_fraction": _fraction(family, rope)},
    )
    tied = bool(data.get("tie_word_embeddings", False))
    return LanguageModelConfig(data["vocab_size"], stack, tied=tied, scale_embeddings=False)


def _fraction(family: Family, rope: Mapping[str, Any]) -> float:
    return float(rope.get("partial_rotary_factor") or family.switches["rope_fraction"])


def _from_chatglm(data: Mapping[str, Any]) -> LanguageModelConfig:
    heads = data["num_attention_heads"]
    stack = TransformerConfig(
        num_layers=data["num_layers"],
        embed=data["hidden_size"],
        heads=heads,
        kv_heads=data["multi_query_group_num"] if data.get("multi_query_attention") else heads,
        head_dim=data["kv_channels"],
        mlp=data["ffn_hidden_size"],
        rope_theta=10_000.0 * float(data.get("rope_ratio", 1)),
        norm_eps=float(data["layernorm_epsilon"]),
        **{**GLM, "qkv_bias": bool(data.get("add_qkv_bias", False))},
    )
    return LanguageModelConfig(
        data["padded_vocab_size"], stack, tied=bool(data.get("tie_word_embeddings", False)),
        scale_embeddings=False,
    )  # fmt: skip


def _long_context(rope: Mapping[str, Any]) -> LongContext | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise UserError(f"rope_type {kind!r}: only default and llama3 are known")
    return LongContext(
        factor=float(rope["factor"]),
        low_freq=float(rope["low_freq_factor"]),
        high_freq=float(rope["high_freq_factor"]),
        length=int(rope["original_max_position_embeddings"]),
    )


# Fields of a config.json that our transformer has one value of (or, None, any of them).
ONLY = {
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "add_bias_linear": (False,),
    "rmsnorm": (True,),
    "post_layer_norm": (True,),
    "apply_residual_connection_post_layernorm": (False,),
    "quantization_config": (None,),
}


def _refuse_other_features(data: Mapping[str, Any], where: str) -> None:
    for name, known in ONLY.items():
        if name in data and data[name] not in known:
            raise UserError(f"{where}: {name} is {data[name]!r}; only {known[0]!r} is known")
    if data.get("model_type") == "llama" and data.get("attention_bias"):
        raise UserError(f"{where}: attention_bias is True; a Llama with biases is not known")


def config_to_json(config: LanguageModelConfig, *, dtype: str, length: int) -> dict[str, Any]:
    """The config.json that `transformers` reads a model of this config by.

    Args:
      dtype: of the stored weights.
      length: longest context that the model is trained for.
    """
    family, stack = family_of(config), config.transformer
    rope: dict[str, Any] = {"rope_theta": stack.rope_theta, "rope_type": "default"}
    if stack.rope_fraction != 1.0:
        rope["partial_rotary_factor"] = stack.rope_fraction
    if stack.long_context is not None:
        far = stack.long_context
        rope |= {
            "rope_type": "llama3", "factor": far.factor, "low_freq_factor": far.low_freq,
            "high_freq_factor": far.high_freq, "original_max_position_embeddings": far.length,
        }  # fmt: skip
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": stack.embed,
        "intermediate_size": stack.mlp,
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": stack.heads,
        "num_key_value_heads": stack.kv_heads,
        "head_dim": stack.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": length,
        "rms_norm_eps": stack.norm_eps,
        "rope_theta": stack.rope_theta,
        "rope_parameters": rope,
        "attention_bias": stack.qkv_bias,
        "tie_word_embeddings": config.tied and not config.scale_embeddings,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": dtype,
        "use_cache": True,
    }
