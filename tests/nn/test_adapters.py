"""Adapters change nothing at first, learn alone, and fold into the maps that they adapt."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechlm_jax.nn.adapters import merge_adapters
from speechlm_jax.nn.attention import whole
from speechlm_jax.nn.language_model import LanguageModelConfig, functional
from speechlm_jax.nn.layers import Lora
from speechlm_jax.nn.transformer import TransformerConfig
from speechlm_jax.train.trainable import overlay, part

PLAIN = LanguageModelConfig(12, TransformerConfig(2, 8, 2, 1, 4, 12, biases=("q", "k", "v")))
LORA = Lora(rank=2, alpha=3.0, targets=("q", "v", "down"))
ADAPTED = dataclasses.replace(PLAIN, transformer=dataclasses.replace(PLAIN.transformer, lora=LORA))
IDS = jnp.array([[3, 1, 4, 1, 5]])


def logits(config, params):
    return functional(config).bind(params)(IDS, whole(jnp.array([5]), 5))


@pytest.fixture(scope="module")
def params(draw):
    return draw(functional(ADAPTED))


def test_the_targets_and_only_they_have_adapters(params):
    blocks = params["transformer"]["blocks"]
    have = {name for room in ("attention", "mlp") for name, linear in blocks[room].items()
            if "lora_a" in linear}  # fmt: skip
    assert have == set(LORA.targets)
    assert blocks["attention"]["q"]["lora_a"].shape == (2, 8, 2)
    assert blocks["mlp"]["down"]["lora_b"].shape == (2, 2, 8)


def test_a_fresh_adapter_changes_nothing(params):
    plain = merge_adapters(ADAPTED, params)[1]  # any weights without adapters
    fresh = functional(ADAPTED).init(jax.random.key(0))[0]
    np.testing.assert_allclose(
        logits(ADAPTED, overlay(fresh, plain)), logits(PLAIN, plain), atol=1e-5
    )


def test_merged_equals_adapted(params):
    config, merged = merge_adapters(ADAPTED, params)
    assert config == PLAIN
    expected = logits(ADAPTED, params)
    np.testing.assert_allclose(logits(config, merged), expected, atol=1e-4)
    without = part(params, ("*kernel", "*bias", "*scale", "embedding"))
    assert not np.allclose(logits(PLAIN, without), expected, atol=1e-2)
    assert merge_adapters(PLAIN, merged) == (PLAIN, merged)
