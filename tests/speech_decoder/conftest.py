"""A tiny flow, shared by the tests of this room."""

import pytest

from speechlm_jax.speech_decoder.flow import FlowConfig
from speechlm_jax.speech_decoder.stage import functional


@pytest.fixture(scope="session")
def config():
    return FlowConfig(
        codebook_size=10, num_voices=3, num_mels=5, mel_frames_per_code=4, patches_per_code=2,
        embed=16, heads=2, mlp=24, encoder_layers=1, estimator_layers=1, block_codes=2,
        mel_mean=0.5, mel_std=2.0,
    )  # fmt: skip


@pytest.fixture(scope="session")
def params(config, draw):
    return draw(functional(config))
