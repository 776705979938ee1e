"""The tiny stages of all tests of this room, trained once."""

import sys
from pathlib import Path

import pytest

from speechlm_jax.verbs import devices

sys.path.insert(0, str(Path(__file__).parent))  # whatever pytest's import mode

import tiny_stages  # noqa: E402


@pytest.fixture(scope="session")
def stages(tmp_path_factory) -> Path:
    return tiny_stages.make_stages(tmp_path_factory.mktemp("stages"))


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Commands decode on one device: programs for the suite's four take longer to compile."""
    monkeypatch.setattr(devices.jax, "device_count", lambda: 1)
