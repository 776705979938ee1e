"""A tiny speech tokenizer, shared by the tests of this room."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechlm_jax.speech_tokenizer.encoder import EncoderConfig
from speechlm_jax.speech_tokenizer.model import SpeechTokenizerConfig
from speechlm_jax.speech_tokenizer.quantizer import QuantizerConfig
from speechlm_jax.speech_tokenizer.stage import functional

MELS, EMBED, LATENT, ENTRIES = 6, 16, 8, 32


@pytest.fixture(scope="session")
def make_config():
    """make_config(pool_factor=..., ...): the config with fields of its encoder changed."""

    def make(**encoder):
        given = {"pool_factor": 4, "block_frames": 8, "latent_dim": LATENT, "rope_theta": 10_000.0}
        given |= encoder
        return SpeechTokenizerConfig(
            text_size=7,
            encoder=EncoderConfig(num_mels=MELS, layers=2, embed=EMBED, heads=2, mlp=24, **given),
            quantizer=QuantizerConfig(
                codebook_size=ENTRIES, codebook_dim=given["latent_dim"] or EMBED
            ),
            post_vq_layers=1,
            decoder_layers=1,
        )

    return make


@pytest.fixture(scope="session")
def config(make_config):
    return make_config()


@pytest.fixture(scope="session")
def params(config, draw):
    return draw(functional(config))


@pytest.fixture(scope="session")
def variables():
    codebook = jnp.array(np.random.default_rng(9).normal(size=(ENTRIES, LATENT)), jnp.float32)
    quantizer = {
        "codebook": codebook,
        "ema_count": jnp.ones(ENTRIES),
        "ema_sum": codebook,
        "updates": jnp.int32(0),
    }
    return {"quantizer": quantizer}


@pytest.fixture(scope="session")
def tokenizer(config, params, variables):
    return functional(config).bind(params, variables)


@pytest.fixture(scope="session")
def make_mel():
    """make_mel(length, batch, seed): noise in the shape of mel frames."""

    def make(length, *, batch=1, seed=0):
        return jax.random.normal(jax.random.key(seed), (batch, length, MELS))

    return make
