"""The bench runs the step of training and counts what it says; presets are what they claim."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from speechlm_jax import artifacts, shipped
from speechlm_jax import config as configs
from speechlm_jax.cli import main as cli
from speechlm_jax.convert.families import family_of
from speechlm_jax.errors import EXIT_USAGE
from speechlm_jax.experiment.configs import load_experiment
from speechlm_jax.lm.bench import MEAN_DOCUMENT, BenchConfig, bench_train, synthetic_rows
from speechlm_jax.lm.presets import preset
from speechlm_jax.nn.language_model import functional
from speechlm_jax.train.work import document_lengths

SMALL = BenchConfig(rows=4, length=64, steps=2, warmup=1)


def test_rows_are_full_of_documents():
    batch = synthetic_rows(BenchConfig(rows=16, length=8192), 1000)
    lengths = document_lengths(batch["segments"])
    assert lengths.sum() == 16 * 8192 and 0.5 < lengths.mean() / MEAN_DOCUMENT < 1.3
    starts = batch["positions"] == 0
    np.testing.assert_array_equal(starts.sum(axis=1), batch["segments"].max(axis=1))
    inside = batch["segments"][:, 1:] == batch["segments"][:, :-1]
    assert (np.diff(batch["positions"], axis=1)[inside] == 1).all()


def test_a_measurement_says_what_it_measured():
    model = preset("tiny", vocab_size=512, dtype="float32")
    found = bench_train(model, SMALL)
    assert json.loads(json.dumps(found)) == found
    assert found["chips"] == 4 and found["tokens"] == 4 * 64
    np.testing.assert_allclose(found["tokens_per_second"], found["tokens"] / found["step_seconds"])
    assert 4.5 < found["loss"] < 7.5, "ln 512 = 6.2, and some steps were taken"
    assert found["argument_bytes"] > 3 * 4 * found["parameters"] / 4, "weights and moments"


def test_it_needs_no_data_library():
    code = (
        "import sys, speechlm_jax.cli.bench, speechlm_jax.lm.bench, speechlm_jax.lm.presets\n"
        "bad = {'grain', 'array_record', 'orbax', 'tensorflow', 'seqio', 'librosa'}\n"
        "print(sorted(bad & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    "size, billions, family",
    [
        ("150M", 0.124, "llama"),
        ("0.5B", 0.358, "qwen2"),
        ("1.5B", 1.31, "qwen2"),
        ("4B", 3.63, "qwen3"),
        ("9B", 8.16, "glm"),
    ],
)
def test_a_preset_has_the_size_and_the_family_of_its_model(size, billions, family):
    model = preset(size, vocab_size=128)
    shapes = functional(model).shapes["transformer"]
    weights = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert weights / 1e9 == pytest.approx(billions, rel=0.01)
    assert family_of(model).model_type == family
    assert dataclasses.replace(model, vocab_size=0) == preset(size)


def test_the_step_of_a_config_is_measured(tmp_path, capsys):
    path = tmp_path / "config.py"
    path.write_text(
        "from speechlm_jax.experiment.configs import LanguageModelExperiment, RowsData\n"
        "from speechlm_jax.lm.presets import preset\n"
        "from speechlm_jax.train.loop import TrainConfig\n"
        "def config():\n"
        "    model, train = preset('tiny', dtype='float32'), TrainConfig(9, num_microbatches=2)\n"
        "    rows = RowsData('', batch_size=8)\n"
        "    return LanguageModelExperiment(rows, model, train, z_loss=0.5)\n",
        encoding="utf-8",
    )
    resolved = tmp_path / "config.json"
    artifacts.write_json(resolved, configs.to_json(configs.load(path)))
    found = []
    for where in (path, resolved):
        asked = f"bench train {where} length=32 steps=1 warmup=0 --vocab 256 --remat none"
        assert cli.main(asked.split()) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["bench"] == found[1]["bench"] and found[0]["loss"] == found[1]["loss"]
    assert found[0]["tokens"] == 8 * 32 and found[0]["bench"]["num_microbatches"] == 2
    assert found[0]["model"]["vocab_size"] == 256
    assert found[0]["model"]["transformer"]["execution"]["remat"] == "none"
    assert found[0]["loss"] > 10, "a z-loss of 0.5 weighs more than the loss itself"


def test_what_is_no_language_model_is_refused(capsys):
    assert cli.main(["bench", "train", "configs/speech_tokenizer_digits.py"]) == EXIT_USAGE
    assert "is not the config of a language model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "value"),
    [("train", 3), ("train", {}), ("data", []), ("z_loss", "a"), ("model", None), ("z_loss", {})],
)
def test_a_runs_config_that_is_broken_is_one_line(tmp_path, capsys, path, value):
    data = configs.to_json(load_experiment(shipped.find("configs/lm_150m.py")))
    artifacts.write_json(tmp_path / "config.json", {**data, path: value})
    assert cli.main(["bench", "train", str(tmp_path / "config.json")]) == EXIT_USAGE
    assert "config.json: " in capsys.readouterr().err
