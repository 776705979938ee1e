"""What earlier versions left on disk is read, and goes on: see `old_runs/make.py`."""

import json
import zipfile
from pathlib import Path

import pytest

from speechlm_jax import config as configs
from speechlm_jax.experiment.configs import experiment_from_json
from speechlm_jax.nn.transformer import ExecutionConfig

ARCHIVE = Path(__file__).parent / "old_runs/v0.zip"


@pytest.fixture
def old(tmp_path):
    """The folder that the old version left."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path)
    return tmp_path


def test_the_config_of_every_kind_of_experiment_is_read(old):
    for name, data in json.loads((old / "configs.json").read_text()).items():
        found = experiment_from_json(data, name)
        assert experiment_from_json(configs.to_json(found), name) == found


def test_how_a_stack_is_computed_is_read_where_it_was(old):
    data = json.loads((old / "configs.json").read_text())["tuned"]
    assert data["model"]["transformer"]["remat"] == "full"
    execution = experiment_from_json(data, "tuned").model.transformer.execution  # type: ignore
    assert execution == ExecutionConfig("blockwise", "full", saved=("qkv",), unroll=2)
