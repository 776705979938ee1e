"""A config.json of Hugging Face <-> the config of our language model."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from speechlm_jax.convert.families import FAMILIES, QKV, Family, family_of
from speechlm_jax.convert.folder_files import shown
from speechlm_jax.errors import UserError
from speechlm_jax.nn.language_model import LanguageModelConfig
from speechlm_jax.nn.rotary import LongContext
from speechlm_jax.nn.transformer import TransformerConfig

LARGEST = 2**31 - 1  # limit of a size; ids are int32
ROPE = "rope_parameters"

# Fields for which our transformer supports only these values, for all families or for one.
# `transformers` reads no others that change a model's computation
# (tests/convert/test_model_config.py).
ONLY: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "quantization_config": (None,),
}
ONLY_OF: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "llama": {"attention_bias": (False,), "pretraining_tp": (1, None)},
    "qwen2": {},
    "qwen3": {"attention_bias": (False,)},
    "glm": {},
    "glm4": {},
    "chatglm": {
        "add_bias_linear": (False,),
        "rmsnorm": (True,),
        "post_layer_norm": (True,),
        "apply_residual_connection_post_layernorm": (False,),
        "tie_word_embeddings": (False,),
        "interleaved_qkv": (False,),
        "original_rope": (True,),
        "pre_seq_len": (None,),
        "quantization_bit": (0, None),
    },
}


@dataclasses.dataclass(frozen=True)
class Fields:
    """The fields of a config.json, read with checks of their types and ranges.

    An absent field has its value of `defaults`, otherwise the default that a method is given. A
    null field has the method's default. A field without any value is an error. All methods raise
    UserError with the field's name.
    """

    data: Mapping[str, Any]
    where: str
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def count(self, name: str, default: int | None = None) -> int:
        """Returns a size: a whole number of at least 1."""
        value = self._value(name, default)
        if type(value) is not int or not 0 < value <= LARGEST:
            raise self._wrong(name, value, "a whole number above 0")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Returns a finite number above 0."""
        value = self._value(name, default)
        if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
            raise self._wrong(name, value, "a number above 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Returns true or false."""
        value = self._value(name, default)
        if type(value) is not bool:
            raise self._wrong(name, value, "true or false")
        return value

    def _value(self, name: str, default: Any) -> Any:
        value = self.data.get(name)
        if value is None and name not in self.data:
            value = self.defaults.get(name)
        value = default if value is None else value
        if value is None:
            raise UserError(f"{self.where}: has no field {name}")
        return value

    def _wrong(self, name: str, value: Any, wanted: str) -> UserError:
        return UserError(f"{self.where}: {name} is {shown(value)}, not {wanted}")


def config_from_json(data: Mapping[str, Any], where: str) -> tuple[Family, LanguageModelConfig]:
    """Returns the family and our config from the data of a config.json.

    Raises:
      UserError: it is of an unknown family, has a feature that our transformer lacks, or has a
        field of a wrong type or value.
    """
    kind = data.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise UserError(f"{where}: model_type {shown(kind)} is none of {', '.join(FAMILIES)}")
    _refuse_other_features(family, data, where)
    fields = Fields(data, where, family.defaults)
    made = _from_chatglm(fields) if family.model_type == "chatglm" else _from(family, fields)
    return family, made


def _from(family: Family, fields: Fields) -> LanguageModelConfig:
    rope = _rope(fields)
    heads, embed = fields.count("num_attention_heads"), fields.count("hidden_size")
    biases = family.biases[0]
    if len(family.biases) > 1:
        biases = QKV if fields.flag("attention_bias", default=False) else ()
    stack = _stack(
        fields.where,
        num_layers=fields.count("num_hidden_layers"),
        embed=embed,
        heads=heads,
        kv_heads=fields.count("num_key_value_heads", heads),
        head_dim=fields.count("head_dim", max(1, embed // heads)),
        mlp=fields.count("intermediate_size"),
        rope_theta=rope.number("rope_theta", 10_000.0),
        rope_fraction=rope.number("partial_rotary_factor", 1.0),
        long_context=_long_context(rope),
        biases=biases,
        qk_norm=family.qk_norm,
        post_norms=family.post_norms,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
    )
    if not family.has(stack):
        raise UserError(
            f"{fields.where}: partial_rotary_factor is {stack.rope_fraction}; a "
            f"{family.model_type} rotates whole heads"
        )
    tied = fields.flag("tie_word_embeddings", default=False)
    return LanguageModelConfig(fields.count("vocab_size"), stack, tied=tied, scale_embeddings=False)


def _rope(fields: Fields) -> Fields:
    """Returns the fields of rotary positions.

    Those of `rope_scaling` or `rope_parameters` override those of the config itself, except for
    `original_max_position_embeddings`.
    """
    own = fields.data.get("rope_scaling") or fields.data.get(ROPE) or {}
    if not isinstance(own, Mapping):
        raise UserError(f"{fields.where}: {ROPE} is {shown(own)}, not an object")
    nested = [name for name, value in own.items() if isinstance(value, Mapping)]
    if nested:
        raise UserError(f"{fields.where}: {ROPE} has {shown(nested[0])}: layers are all alike here")
    outer = ("rope_theta", "partial_rotary_factor")
    found = {name: fields.data[name] for name in outer if name in fields.data}
    longest = fields.data.get("max_position_embeddings")
    first = {"original_max_position_embeddings": longest} if longest is not None else {}
    before = "original_max_position_embeddings"
    over = {before: fields.data[before]} if before in fields.data else {}
    return Fields({**first, **found, **own, **over}, fields.where, fields.defaults)


def _long_context(rope: Fields) -> LongContext | None:
    kind = rope.data.get("rope_type") or rope.data.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise UserError(
            f"{rope.where}: rope_type is {shown(kind)}; only default and llama3 are known"
        )
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if low >= high:
        raise UserError(f"{rope.where}: low_freq_factor is {low}, not below high_freq_factor")
    return LongContext(
        factor=rope.number("factor"),
        low_freq=low,
        high_freq=high,
        length=rope.count("original_max_position_embeddings"),
    )


def _from_chatglm(fields: Fields) -> LanguageModelConfig:
    heads = fields.count("num_attention_heads")
    grouped = fields.flag("multi_query_attention", default=False)
    stack = _stack(
        fields.where,
        num_layers=fields.count("num_layers"),
        embed=fields.count("hidden_size"),
        heads=heads,
        kv_heads=fields.count("multi_query_group_num") if grouped else heads,
        head_dim=fields.count("kv_channels"),
        mlp=fields.count("ffn_hidden_size"),
        rope_theta=10_000.0 * fields.number("rope_ratio", 1.0),
        rope_fraction=0.5,
        biases=QKV if fields.flag("add_qkv_bias", default=False) else (),
        norm_eps=fields.number("layernorm_epsilon"),
    )
    return LanguageModelConfig(
        fields.count("padded_vocab_size"), stack, tied=False, scale_embeddings=False
    )


def _refuse_other_features(family: Family, data: Mapping[str, Any], where: str) -> None:
    for name, known in {**ONLY, **ONLY_OF[family.model_type]}.items():
        # an absent field has the first value
        if name in data and not any(data[name] is one or data[name] == one for one in known):
            raise UserError(
                f"{where}: {name} is {shown(data[name])}; only {known[0]!r} is known of a "
                f"{family.model_type}"
            )
    layers = data.get("layer_types")
    if layers is not None and (
        not isinstance(layers, list) or any(kind != "full_attention" for kind in layers)
    ):
        raise UserError(f"{where}: layer_types is {shown(layers)}; only 'full_attention' is known")


def _stack(where: str, **shape: Any) -> TransformerConfig:
    """Returns the stack; raises UserError, in the released config's terms, if sizes do not fit."""
    heads, kv_heads, fraction = shape["heads"], shape["kv_heads"], shape["rope_fraction"]
    if heads % kv_heads:
        raise UserError(f"{where}: {heads} attention heads cannot share {kv_heads} key-value heads")
    turning = int(shape["head_dim"] * fraction)
    if fraction > 1 or turning % 2 or not turning:
        raise UserError(
            f"{where}: partial_rotary_factor {fraction} of head_dim {shape['head_dim']} rotates "
            f"{turning} dimensions; it must be an even number of them"
        )
    try:
        return TransformerConfig(**shape)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def config_to_json(config: LanguageModelConfig, *, dtype: str, length: int) -> dict[str, Any]:
    """Returns the config.json with which `transformers` reads a model of this config.

    Args:
      dtype: dtype of the stored weights.
      length: longest context that the model is trained for, in ids.
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
        "attention_bias": bool(stack.biases),
        "tie_word_embeddings": config.tied and not config.scale_embeddings,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": dtype,
        "use_cache": True,
    }
