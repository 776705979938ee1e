"""A tiny language model with grouped queries, shared by the tests of this room."""

import pytest

from speechlm_jax.nn.language_model import LanguageModelConfig, functional
from speechlm_jax.nn.transformer import TransformerConfig


@pytest.fixture(scope="session")
def config():
    stack = TransformerConfig(num_layers=2, embed=16, heads=4, kv_heads=2, head_dim=8, mlp=24)
    # untied: a random model with one table for both would only repeat its last id
    return LanguageModelConfig(vocab_size=24, transformer=stack, tied=False)


@pytest.fixture(scope="session")
def params(config, draw):
    return draw(functional(config))


@pytest.fixture(scope="session")
def model(config, params):
    return functional(config).bind(params)
