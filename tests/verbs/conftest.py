"""One tiny run for all tests of the verbs, and recordings."""

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechlm_jax import artifacts
from speechlm_jax.verbs import devices

sys.path.insert(0, str(Path(__file__).parent))  # whatever pytest's import mode

import tiny_run  # noqa: E402


@pytest.fixture
def all_devices():
    """Asked for by a test that decodes on all devices of the suite."""


@pytest.fixture(autouse=True)
def one_device(request, monkeypatch):
    """Commands decode on one device: programs for the suite's four take longer to compile."""
    if "all_devices" not in request.fixturenames:
        monkeypatch.setattr(devices.jax, "device_count", lambda: 1)


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    return tiny_run.make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def other_run(tmp_path_factory) -> Path:
    """A run with another speech tokenizer, and so another vocabulary."""
    return tiny_run.make_run(tmp_path_factory.mktemp("other"), seed=1)


def write_recording(path: Path, *, rate: int = 16_000, seconds: float = 1.0, channels: int = 1):
    """Noise that rises and falls."""
    samples = int(rate * seconds)
    wav = np.random.default_rng(len(path.name)).normal(0, 0.1, samples)
    wav *= np.sin(np.linspace(0.1, 9, samples)) ** 2
    soundfile.write(path, np.stack([wav] * channels, axis=1), rate)
    return path


@pytest.fixture
def recordings(tmp_path) -> Path:
    """A clip folder in four formats, and a row whose file is not there."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    made = [
        write_recording(folder / "a.wav", rate=8_000),
        write_recording(folder / "b.flac", rate=44_100, channels=2),
        write_recording(folder / "c.ogg", rate=22_050),
        write_recording(folder / "d.mp3", rate=48_000, channels=2),
    ]
    names = [*(path.name for path in made), "gone.wav"]
    rows = [{"audio": name, "text": "The CITY of Anna!", "speaker": "Ann"} for name in names]
    artifacts.write_jsonl(folder / "manifest.jsonl", rows)
    return folder
