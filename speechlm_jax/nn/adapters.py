"""Low-rank adapters folded into the maps that they adapt, for export and for decoding."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from speechlm_jax.arrays import PyTree
from speechlm_jax.nn.language_model import LanguageModelConfig


def merge_adapters(
    config: LanguageModelConfig, params: PyTree
) -> tuple[LanguageModelConfig, PyTree]:
    """The same model without adapters: each kernel plus `scale * a @ b` (Hu et al. 2021)."""
    lora = config.transformer.lora
    if lora is None:
        return config, params

    def merged(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        if "lora_a" not in node:
            return {name: merged(part) for name, part in node.items()}
        low = jnp.matmul(node["lora_a"], node["lora_b"])  # stacked layers stand before
        rest = {name: part for name, part in node.items() if not name.startswith("lora_")}
        return {**rest, "kernel": node["kernel"] + lora.scale * low}

    plain = dataclasses.replace(config.transformer, lora=None)
    return dataclasses.replace(config, transformer=plain), merged(params)
