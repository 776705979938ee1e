"""Sizes are Whisper's; rates and codebooks are the report's; fine-tuning keeps weights."""

import dataclasses
import math

import pytest
from flax.traverse_util import flatten_dict

from speechlm_jax.errors import UserError
from speechlm_jax.speech_tokenizer.sizes import (
    CODEBOOKS,
    SIZES,
    encoder_only,
    speech_tokenizer,
    whisper,
)
from speechlm_jax.speech_tokenizer.stage import functional


@pytest.mark.parametrize("rate", CODEBOOKS)
def test_each_rate_has_its_codebook_and_its_samples(rate):
    config = speech_tokenizer("tiny", frame_rate_hz=rate)
    assert config.frame_rate_hz == rate and config.samples_per_frame == 16_000 / rate
    assert math.log2(config.quantizer.codebook_size) == {50: 12, 25: 12, 12.5: 14, 6.25: 16}[rate]
    assert config.quantizer.codebook_dim == config.encoder.embed
    assert config.num_codes(480_000) == math.ceil(30 * rate)
    assert config.encoder.pooled_max_frames == math.ceil(1500 / config.encoder.pool_factor)
    most = config.padded_samples(480_000)
    assert most // config.mel.hop_length <= 2 * config.encoder.max_frames


def test_a_tokenizer_has_the_parameters_of_its_whisper_and_its_second_table_beside():
    plain = flatten_dict(functional(whisper("base")).shapes, sep="/")
    made = flatten_dict(functional(speech_tokenizer("base")).shapes, sep="/")
    assert {path: made.get(path) for path in plain} == plain
    assert made.keys() - plain.keys() == {"table"}
    coder = flatten_dict(functional(encoder_only(speech_tokenizer("base"))).shapes, sep="/")
    assert {path: made[path] for path in coder} == coder


def test_a_block_that_is_no_whole_number_of_codes_is_refused_by_the_rule():
    """The report's 2 s are 100 frames: 12.5 codes at 6.25 Hz."""
    words = (
        r"block_frames: 100 is no multiple of pool_factor, 8: a block holds whole codes; "
        r"100 are 2 s, give 96 \(1.92 s\) or 104 \(2.08 s\)$"
    )
    with pytest.raises(UserError, match=words):
        speech_tokenizer("base", frame_rate_hz=6.25, block_frames=100)
    assert speech_tokenizer("base", block_frames=100).encoder.pooled_block == 25


def test_an_unknown_rate_names_the_known_ones():
    with pytest.raises(UserError, match="frame_rate_hz: 10 is none of 50, 25, 12.5, 6.25"):
        speech_tokenizer("tiny", frame_rate_hz=10.0)


@pytest.mark.parametrize("size", SIZES)
def test_prompts_are_ids_of_the_vocabulary(size):
    config = whisper(size)
    assert config.text is not None and max(config.text.ids) < config.text_size
    assert len(config.text.prompt) == (2 if size.endswith(".en") else 4)
    assert dataclasses.replace(config, dtype="bfloat16") == whisper(size, dtype="bfloat16")
