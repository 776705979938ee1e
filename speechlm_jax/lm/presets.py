"""Shapes of language models by size; most are those of published models.

| name | parameters without embeddings | shape of |
|---|---|---|
| tiny | 0.2M | none: for tests |
| 150M | 0.12B | none: head_dim 64, as the smallest Llamas have |
| 0.5B | 0.36B | Qwen2.5-0.5B |
| 1.5B | 1.31B | Qwen2.5-1.5B |
| 4B | 3.63B | Qwen3-4B |
| 9B | 8.16B | GLM-4-9B, which GLM-4-Voice was trained from (paper, section 3.1) |
"""

import dataclasses
from typing import Literal

from speechlm_jax.lm.sizes import Size
from speechlm_jax.nn.language_model import Dtype, LanguageModelConfig
from speechlm_jax.nn.transformer import ExecutionConfig, TransformerConfig

_STACKS: dict[Size, TransformerConfig] = {
    "tiny": TransformerConfig(num_layers=2, embed=64, heads=4, kv_heads=2, head_dim=16, mlp=192),
    "150M": TransformerConfig(
        num_layers=18, embed=768, heads=12, kv_heads=4, head_dim=64, mlp=2304, rope_theta=1e5
    ),
    "0.5B": TransformerConfig(
        num_layers=24, embed=896, heads=14, kv_heads=2, head_dim=64, mlp=4864, rope_theta=1e6,
        biases=("q", "k", "v"),
    ),
    "1.5B": TransformerConfig(
        num_layers=28, embed=1536, heads=12, kv_heads=2, head_dim=128, mlp=8960, rope_theta=1e6,
        biases=("q", "k", "v"),
    ),
    "4B": TransformerConfig(
        num_layers=36, embed=2560, heads=32, kv_heads=8, head_dim=128, mlp=9728, rope_theta=1e6,
        qk_norm=True,
    ),
    "9B": TransformerConfig(
        num_layers=40, embed=4096, heads=32, kv_heads=2, head_dim=128, mlp=13696,
        rope_theta=10_000.0, rope_fraction=0.5, biases=("q", "k", "v"), norm_eps=1.5625e-07,
    ),
}  # fmt: skip
TIED: tuple[Size, ...] = ("tiny", "0.5B", "1.5B", "4B")


def preset(
    size: Size,
    *,
    vocab_size: int = 0,
    dtype: Dtype = "bfloat16",
    remat: Literal["none", "full", "dots"] = "full",
) -> LanguageModelConfig:
    """Returns the config of a model of this size.

    Args:
      vocab_size: number of ids; 0 takes that of the rows' vocabulary.
    """
    stack = dataclasses.replace(_STACKS[size], execution=ExecutionConfig(remat=remat))
    return LanguageModelConfig(
        vocab_size, stack, tied=size in TIED, scale_embeddings=False, dtype=dtype
    )
