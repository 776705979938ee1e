"""What earlier versions left on disk is read, and goes on: see `old_runs/make.py`."""

import dataclasses
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import get_args

import jax
import numpy as np
import pytest

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.errors import UserError
from speechlm_jax.experiment.configs import EXPERIMENTS, experiment_from_json
from speechlm_jax.experiment.processes import KIND, Run
from speechlm_jax.experiment.training import train_experiment
from speechlm_jax.nn.transformer import ExecutionConfig
from speechlm_jax.train import checkpoint_folder, checkpoints
from speechlm_jax.typed import field_types, is_added, moves

MESH = ("train.mesh.fsdp=2", "train.mesh.tensor=2")  # of the tests' four devices
HERE = Path(__file__).parent / "old_runs"
sys.path.insert(0, str(HERE))
import make  # noqa: E402


@pytest.fixture
def old(tmp_path):
    """The folder that the old version left."""
    with zipfile.ZipFile(HERE / "v0.zip") as archive:
        archive.extractall(tmp_path)
    return tmp_path


@pytest.fixture
def experiment(old):
    """experiment(name): one of the old configs, on the old rows."""
    data = json.loads((old / "configs.json").read_text())

    def read(name, *overrides):
        found = experiment_from_json(data[name], name)
        rows = f"data.mixture={old / 'rows/mix.mixture.json'}"
        return configs.override(found, [rows, *MESH, *overrides])

    return read


def tagged(data):
    """The data of every dataclass in JSON data."""
    if isinstance(data, dict):
        yield from [data] if "class" in data else []
    for item in data.values() if isinstance(data, dict) else data:
        yield from tagged(item) if isinstance(item, (dict, list)) else ()


def classes_in(cls):
    """A dataclass, and all that its fields name."""
    yield cls
    for hint in field_types(cls).values():
        for part in (hint, *get_args(hint)):
            if dataclasses.is_dataclass(part):
                yield from classes_in(part)


def test_the_config_of_every_kind_of_experiment_is_read(old):
    for name, data in json.loads((old / "configs.json").read_text()).items():
        found = experiment_from_json(data, name)
        assert experiment_from_json(configs.to_json(found), name) == found
        assert configs.upgraded(data, found) == configs.to_json(found)


def test_how_a_stack_is_computed_is_read_where_it_was(old):
    data = json.loads((old / "configs.json").read_text())["tuned"]
    assert data["model"]["transformer"]["remat"] == "full"
    execution = experiment_from_json(data, "tuned").model.transformer.execution  # type: ignore
    assert execution == ExecutionConfig("blockwise", "full", saved=("qkv",), unroll=2)


def test_a_field_that_was_renamed_is_read_and_an_override_is_told_its_name(old):
    data = json.loads((old / "configs.json").read_text())["speech_tokenizer"]
    assert data["model"]["late_layers"] == 1
    found = experiment_from_json(data, "speech_tokenizer")
    assert found.model.post_vq_layers == 1  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"model\.late_layers: is now model\.post_vq_layers$"):
        configs.override(found, ["model.late_layers=1"])
    run = Run("tokenizer", found, old / "tokenizer", {"features": "f"})
    artifacts.write_manifest(run.workdir, KIND, inputs=run.inputs, config=data)
    assert run.is_done


@pytest.mark.parametrize("biased, biases", [(False, ()), (True, ("q", "k", "v"))])
def test_a_field_that_was_a_flag_is_read_as_the_maps_that_it_meant(old, biased, biases):
    data = json.loads((old / "configs.json").read_text())["plain"]
    assert data["model"]["transformer"]["qkv_bias"] is False
    data["model"]["transformer"]["qkv_bias"] = biased
    found = experiment_from_json(data, "plain")
    assert found.model.transformer.biases == biases  # type: ignore[union-attr]
    assert configs.upgraded(data, found) == configs.to_json(found)
    with pytest.raises(UserError, match=r"qkv_bias: is now model\.transformer\.biases$"):
        configs.override(found, ["model.transformer.qkv_bias=true"])
    data["model"]["transformer"]["qkv_bias"] = 1
    with pytest.raises(UserError, match=r"transformer\.biases: 1 is not"):
        experiment_from_json(data, "plain")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("plain", []),
        pytest.param("text_to_token", [], marks=pytest.mark.slow),
        pytest.param("tuned", [], marks=pytest.mark.slow),
        (
            "tuned",
            [
                "model.transformer.execution.remat=none",
                "model.transformer.execution.attention=reference",
                "model.transformer.execution.unroll=1",
                "train.num_microbatches=1",
                "eval_every_steps=3",
                "train.max_skipped_steps=7",
                "train.optimizer.decay_head=true",  # the default, which the run does not know
            ],
        ),
    ],
    ids=["plain", "text_to_token", "tuned", "tuned, computed otherwise"],
)
def test_an_old_run_goes_on_and_ends_where_it_would_have(old, experiment, name, changes):
    run, end = old / name, json.loads((old / "ends.json").read_text())[name]
    train_experiment(experiment(name, *changes), run)
    assert checkpoint_folder.steps(run / "checkpoints") == [4, 8]
    losses = [x["loss"] for x in artifacts.read_jsonl(run / "metrics.jsonl") if "loss" in x]
    np.testing.assert_allclose(losses, end["loss"], rtol=2e-4)
    found = checkpoints.load_params(run).params
    norms = {
        jax.tree_util.keystr(path): np.linalg.norm(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(found)
    }
    assert norms == pytest.approx(end["norms"], rel=2e-4)


def test_another_run_is_refused_by_the_fields_that_differ(old, experiment):
    for name, change, words in (
        ("plain", "train.seed=7", "train.seed=0, this run has 7"),
        ("plain", "model.transformer.mlp=20", "model.transformer.mlp=16, this run has 20"),
        ("tuned", "z_loss=0", "z_loss=0.0001, this run has 0.0"),
        ("tuned", "data.seed=2", "data.seed=0, this run has 2"),
        ("text_to_token", "kind=lm", "stage text_to_token, this run has lm; kind='text_to_token'"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            train_experiment(experiment(name, change), old / name)


def test_rows_that_were_prepared_anew_are_said_to_be(old, experiment):
    path = old / "rows/a/train/stage.json"
    path.write_text(path.read_text().replace('"inputs": {}', '"inputs": {"text": "other"}'))
    with pytest.raises(UserError, match="plan .*the config is the same, so its rows were prepared"):
        train_experiment(experiment("plain"), old / "plain")


def test_a_training_that_is_done_stays_so_and_one_that_stopped_goes_on(old):
    config = experiment_from_json(json.loads((old / "configs.json").read_text())["lm"], "lm")
    assert Run("done", config, old / "done", {"rows": "r"}).is_done
    assert not Run("done", config, old / "done", {"rows": "other"}).is_done
    for change, stays in (
        ("train.log_every_steps=7", True),
        ("train.optimizer.decay_head=true", True),
        ("train.seed=7", False),
    ):
        changed = configs.override(config, [change])
        assert Run("done", changed, old / "done", {"rows": "r"}).is_done == stays
        (old / "stopped/kept").touch()
        Run("stopped", changed, old / "stopped", {"rows": "r"}).start()
        assert (old / "stopped/kept").exists() == stays


def test_fingerprints_on_disk_keep_their_values(old):
    expected = json.loads((old / "fingerprints.json").read_text())
    found = {name: configs.fingerprint(x) for name, x in make.fingerprinted().items()}
    assert found == expected


def test_a_field_that_came_since_says_what_configs_without_it_mean(old):
    """Write `field: type = added(value)`, or old work loses its name; see docs/architecture.md."""
    data = json.loads((old / "configs.json").read_text())
    written = {node["class"]: node.keys() for node in tagged(list(data.values()))}
    assert len(written) > 15
    for cls in {one for root in EXPERIMENTS.values() for one in classes_in(root)}:
        moved = {path.split(".")[0] for path in moves(cls).values()}
        came = {field.name for field in dataclasses.fields(cls)} - moved
        came -= written.get(cls.__name__, came)
        plain = [f.name for f in dataclasses.fields(cls) if f.name in came and not is_added(f)]
        assert not plain, f"{cls.__name__}: {plain} need added()"
