"""Model families of Hugging Face: which of our models they support, and their tensors.

GLM-4 (as released with remote code, and as `GlmForCausalLM`), GLM-4-0414, Llama 3, Qwen2 and Qwen3
are our one transformer with different switches. If a family rotates neighbouring dimensions of a
head against each other (GLM-4), the rows of the query and key projections are reordered, which
changes no attention score; see `Tensor.neighbours`.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from speechlm_jax.errors import UserError
from speechlm_jax.nn.language_model import LanguageModelConfig
from speechlm_jax.nn.layers import Map
from speechlm_jax.nn.transformer import TransformerConfig

BLOCKS = "transformer/blocks/"
QKV: tuple[Map, ...] = ("q", "k", "v")
LAYER = "{layer}"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A foreign tensor and the parameters that it holds one after another (along its axis 0).

    Attributes:
      name: name of the tensor, with `{layer}` if there is one in each layer.
      ours: paths of the parameters, joined by "/"; those of a layer are stacked over layers. A
        variable is named as a parameter is.
      transposed: whether its axes stand in the opposite order: [out, in] of a matrix, [out, in,
        kernel] of a convolution.
      neighbours: those of `ours` whose neighbouring dimensions rotate against each other there.
      head_dim, turning: sizes of a head of theirs, and of the part that rotates.
      absent: true if the file may lack it: it equals another tensor or follows from config.json.
      first_layer: number that our first layer has there.
    """

    name: str
    ours: tuple[str, ...]
    transposed: bool = True
    neighbours: tuple[str, ...] = ()
    head_dim: int = 0
    turning: int = 0
    absent: bool = False
    first_layer: int = 0

    def name_of(self, layer: int | None) -> str:
        """Returns the name of the tensor of one of our layers."""
        return self.name.replace(LAYER, str(self.first_layer + (layer or 0)))


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of models: its names, and the configs that its models can have.

    Attributes:
      model_type: `model_type` in config.json.
      architecture: class of `transformers` that reads it.
      biases: values of `biases` that its models can have.
      qk_norm, post_norms: true if all its models have them; false if none has.
      is_interleaved: true if neighbouring dimensions rotate against each other; only then may a
        part of a head rotate.
      defaults: values of fields that config.json lacks, if they differ from those of all families.
    """

    model_type: str
    architecture: str
    biases: tuple[tuple[Map, ...], ...] = ((),)
    qk_norm: bool = False
    post_norms: bool = False
    is_interleaved: bool = False
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def tensors(self, config: LanguageModelConfig) -> tuple[Tensor, ...]:
        """Returns every tensor of a model."""
        if self.model_type == "chatglm":
            return tuple(_turning(config, _chatglm(config)))
        return tuple(_turning(config, _transformers(config, interleaved=self.is_interleaved)))

    def has(self, stack: TransformerConfig) -> bool:
        """Returns whether a model of this family computes the same as a stack."""
        mine = ("rms", "swiglu", self.qk_norm, self.post_norms)
        switches = (stack.norm, stack.mlp_kind, stack.qk_norm, stack.post_norms) == mine
        part = self.is_interleaved or stack.rope_fraction == 1.0
        return switches and part and set(stack.biases) in map(set, self.biases)


GLM: dict[str, Any] = {
    "biases": ((), QKV),
    "is_interleaved": True,
    "defaults": {
        "attention_bias": True, "head_dim": 128, "num_key_value_heads": 2,
        "partial_rotary_factor": 0.5, "rms_norm_eps": 1.5625e-07,
    },
}  # fmt: skip
FAMILIES = {
    family.model_type: family
    for family in (
        Family("llama", "LlamaForCausalLM"),
        Family("qwen2", "Qwen2ForCausalLM", (QKV,), defaults={"num_key_value_heads": 32}),
        Family(
            "qwen3", "Qwen3ForCausalLM", qk_norm=True,
            defaults={"num_key_value_heads": 32, "head_dim": 128},
        ),
        Family("glm", "GlmForCausalLM", **GLM),
        Family("glm4", "Glm4ForCausalLM", post_norms=True, **GLM),
        Family("chatglm", "ChatGLMModel", **GLM),
    )
}  # fmt: skip
EXPORTED = ("llama", "qwen2", "qwen3", "glm", "glm4")


def family_of(config: LanguageModelConfig) -> Family:
    """Returns the family as which a model can be written; raises UserError if there is none."""
    stack = config.transformer
    if stack.block != 1 or stack.rope_theta is None or stack.cross_attention:
        raise UserError(
            f"model.transformer: block={stack.block}, rope_theta={stack.rope_theta}, "
            f"cross_attention={stack.cross_attention}: Hugging Face families are causal, with "
            "rotary positions, over one sequence"
        )
    for name in EXPORTED:
        if FAMILIES[name].has(stack):
            return FAMILIES[name]
    switches = ("norm", "mlp_kind", "biases", "qk_norm", "post_norms", "rope_fraction")
    said = ", ".join(f"{name}={getattr(stack, name)}" for name in switches)
    raise UserError(f"model.transformer: no Hugging Face family has all of {said}")


def _turning(config: LanguageModelConfig, tensors: Iterator[Tensor]) -> Iterator[Tensor]:
    """Yields the tensors, those with `neighbours` with the sizes of a head."""
    size = config.transformer.head_dim
    turning = int(size * config.transformer.rope_fraction)
    for tensor in tensors:
        rotates = bool(tensor.neighbours)
        yield (dataclasses.replace(tensor, head_dim=size, turning=turning) if rotates else tensor)


def _transformers(config: LanguageModelConfig, *, interleaved: bool) -> Iterator[Tensor]:
    """Yields tensors by the names of `transformers`; with `interleaved`, gate and up are fused."""
    stack = config.transformer
    yield Tensor(EMBEDDING, ("embedding",), transposed=False)
    layer = f"model.layers.{LAYER}."
    yield Tensor(f"{layer}self_attn.rotary_emb.inv_freq", (), absent=True)  # in old versions
    for part in QKV:
        ours, turned = f"{BLOCKS}attention/{part}/", interleaved and part != "v"
        for kind in ("kernel", "bias") if part in stack.biases else ("kernel",):
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
        yield Tensor(HEAD, (), absent=True)
    else:
        yield Tensor(HEAD, ("head/kernel",))


def _chatglm(config: LanguageModelConfig) -> Iterator[Tensor]:
    """Yields tensors by the names of GLM-4's remote code, in which `glm-4-voice-9b` is released."""
    yield Tensor("transformer.embedding.word_embeddings.weight", ("embedding",), transposed=False)
    yield Tensor("transformer.rotary_pos_emb.inv_freq", (), absent=True)
    layer = f"transformer.encoder.layers.{LAYER}."
    for kind, theirs in (("kernel", "weight"), ("bias", "bias")):
        if kind == "bias" and not config.transformer.biases:
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
