"""A tiny tokenizer on absent chips: it fits, its parts add up, its FLOPs are the compiler's."""

import dataclasses
import json

import numpy as np
import pytest

from speechlm_jax.cli import main as cli
from speechlm_jax.data.clips import BucketConfig
from speechlm_jax.errors import EXIT_OK, UserError
from speechlm_jax.experiment.configs import ClipsData, SpeechTokenizerExperiment
from speechlm_jax.planner.slices import parse_topology
from speechlm_jax.planner.tokenizer import batch_shapes, plan_tokenizer
from speechlm_jax.speech_tokenizer.batches import TranscribedClips
from speechlm_jax.speech_tokenizer.encoder import EncoderConfig
from speechlm_jax.speech_tokenizer.model import SpeechTokenizerConfig
from speechlm_jax.speech_tokenizer.quantizer import QuantizerConfig
from speechlm_jax.text import TextTokenizer
from speechlm_jax.train.loop import TrainConfig
from speechlm_jax.train.optimizer import OptimizerConfig

pytest.importorskip("libtpu", reason="needs the `tpu` extra")
SLICE = parse_topology("v5e:2x2")
EXPERIMENT = SpeechTokenizerExperiment(
    ClipsData("", buckets=BucketConfig(batch_size=8, edges=(128, 256))),
    SpeechTokenizerConfig(
        0,
        EncoderConfig(layers=1, embed=128, heads=2, mlp=256, latent_dim=128),
        QuantizerConfig.released(codebook_size=256, codebook_dim=128),
        post_vq_layers=1,
        decoder_layers=1,
    ),
    TrainConfig(10, optimizer=OptimizerConfig(warmup_steps=1), num_microbatches=2),
)
SLOW = pytest.mark.slow  # a training step to compile for TPUs
ASKED = {"length": 15, "vocab_size": 500}


@pytest.fixture(scope="module")
def plan():
    return plan_tokenizer(EXPERIMENT, SLICE, **ASKED)


@SLOW
def test_a_tiny_tokenizer_fits(plan):
    found = plan.to_json()
    assert found == json.loads(json.dumps(found)) and found["fits"] and plan.fits
    assert found["rows"] == 8 and plan.microbatch_rows == 4 and found["clip_seconds"] == 2.56
    assert 0 < found["hbm_bytes"] < found["capacity_bytes"]
    hours = 8 * 2.56 / found["step_seconds_bound"]
    assert found["audio_hours_per_hour_bound"] == pytest.approx(hours)


@SLOW
def test_parts_add_up_to_what_the_compiler_needs(plan):
    parts = plan.parts
    codebook = 256 * 128 * 4
    assert 2 * codebook < parts["variables"] < 2.1 * codebook, "on every chip"
    assert parts["weights"] < 1.1 * plan.parameters
    assert sum(parts.values()) == pytest.approx(plan.compiled.hbm_bytes, rel=0.02)


@SLOW
def test_flops_are_those_of_the_matrices(plan):
    """Six a weight and position: 128 encoder frames, 32 codes, 16 ids."""
    block = 4 * 128**2 + 3 * 128 * 256
    convolutions = 3 * 128 * (80 + 128)
    encoder = 128 * (block + convolutions + 128**2)
    late = 32 * (block + 128 * 501)
    decoder = 16 * (block + 4 * 128**2 + 128 * 501)
    assert plan.flops == pytest.approx(8 * 6 * (encoder + late + decoder), rel=0.01)


def test_the_batch_is_that_of_a_training(write_features, tmp_path):
    said = "abcd" + 14 * " abc"
    text = TextTokenizer.train([said], kind="word")
    rows = [{"id": "a", "text": said, "speaker": "s"}]
    features = write_features(tmp_path / "features", rows, [200])
    made = TranscribedClips(features, [0], text).collate(256, np.zeros(8, int), np.arange(8))
    shapes = batch_shapes(EXPERIMENT, 256, 15)
    assert {name: (x.shape, x.dtype) for name, x in made.items()} == {
        name: (x.shape, x.dtype) for name, x in shapes.items()
    }


@SLOW
def test_the_command(plan, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("speechlm_jax.cli.plan.tokenizers.plan_tokenizer", lambda *_, **__: plan)
    line = ["plan", "configs/speech_tokenizer_digits.py", "--topology", "v5e:2x2"]
    assert cli.main([*line, "--largest", "--cache", str(tmp_path)]) == EXIT_OK
    told = capsys.readouterr().out
    assert "8 clips of 2.56 s a step, in 2 parts" in told and "hours of audio an hour" in told
    assert "clips at a time fit" in told


def test_clips_that_do_not_divide_are_one_line():
    buckets = dataclasses.replace(EXPERIMENT.data.buckets, batch_size=9)
    data = dataclasses.replace(EXPERIMENT.data, buckets=buckets)
    with pytest.raises(UserError, match=r"data\.buckets\.batch_size: 9 rows do not divide"):
        plan_tokenizer(dataclasses.replace(EXPERIMENT, data=data), SLICE, **ASKED)
