"""What is installed: a wheel with all that ships, a slim host, a data set outside the checkout."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechlm_jax import artifacts

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/verbs"))
from tiny_run import make_run  # noqa: E402

pytestmark = pytest.mark.slow


def _run(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    # Neither the checkout nor the tests' forced devices may leak into the new environment.
    hidden = {"PYTHONPATH", "XLA_FLAGS"}
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory, setup_value) -> Path:
    """A copy of the tree, so that building leaves nothing in the checkout."""
    top = tmp_path_factory.mktemp("sources")
    for name in ("setup.py", "LICENSE", "README.md"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, top / name)
    for name in ("speechlm_jax", *setup_value("SHIPPED")):
        shutil.copytree(ROOT / name, top / name, ignore=shutil.ignore_patterns("__pycache__"))
    return top


@pytest.fixture(scope="module")
def wheel(sources) -> Path:
    """The wheel that `pip install .` would make."""
    _run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
        *("--wheel-dir", "dist", "."),
        cwd=sources,
    )
    (path,) = (sources / "dist").glob("*.whl")
    return path


LAB = """
from pathlib import Path
from speechlm_jax.data import tasks

HERE = Path(__file__).parent
tasks.text("lab_text", HERE / "stories/*.txt", validation_ratio=0.2)
tasks.text_tfds(
    "lab_stories", "tiny_stories:1.0.0", data_dir=HERE / "tfds", field="story",
    splits={"train": "train[20%:]", "validation": "train[:20%]"},
)
tasks.asr("lab_asr", HERE / "codes")
tasks.mixture("lab", {"lab_text": 0.4, "lab_stories": 0.4, "lab_asr": 0.2})
"""
CONFIG = """
from speechlm_jax.experiment.configs import LanguageModelExperiment, RowsData
from speechlm_jax.nn.language_model import LanguageModelConfig
from speechlm_jax.nn.transformer import TransformerConfig
from speechlm_jax.train.loop import TrainConfig
from speechlm_jax.train.optimizer import OptimizerConfig

def config():
    return LanguageModelExperiment(
        RowsData("data/lab.mixture.json", batch_size=2),
        LanguageModelConfig(0, TransformerConfig(1, 16, 2, 2, 8, 32)),
        TrainConfig(total_steps=3, optimizer=OptimizerConfig(peak=1e-2, warmup_steps=1)),
    )
"""


@pytest.fixture(scope="module")
def lab(wheel, tiny_stories, tmp_path_factory):
    """A user's folder outside the checkout, with the wheel's library and rows that it prepared.

    Returns (folder, speechlm): speechlm(*arguments) runs the command there.
    """
    top = tmp_path_factory.mktemp("lab")
    _run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", "site", wheel,
         cwd=top)  # fmt: skip
    make_run(top / "run")
    (top / "stories").mkdir()
    (top / "stories/one.txt").write_text("it is the cat of ben\n" * 40, encoding="utf-8")
    (top / "my_lab.py").write_text(LAB, encoding="utf-8")
    (top / "my_config.py").write_text(CONFIG, encoding="utf-8")
    wav = np.sin(np.arange(16_000) / 9).astype(np.float32) / 4
    (top / "recordings").mkdir()
    rows = []
    for number in range(6):
        soundfile.write(top / f"recordings/{number}.wav", wav[: 8_000 + 800 * number], 16_000)
        rows.append({"audio": f"{number}.wav", "text": "the city of anna", "speaker": "me"})
    artifacts.write_jsonl(top / "recordings/manifest.jsonl", rows)
    texts = [f"the city of {name} is london" for name in ["anna", "ben"] * 30]
    build = f"TEXTS = {texts}\n{tiny_stories}\nTinyStories(data_dir='tfds').download_and_prepare()"
    _run(sys.executable, "-c", build, cwd=top, path=top / "site")

    def speechlm(*arguments: str) -> str:
        return _run(
            *(sys.executable, "-m", "speechlm_jax.cli.main"), *arguments,
            cwd=top, path=top / "site",
        )  # fmt: skip

    found = _run(sys.executable, "-c", "import speechlm_jax as s; print(s.__file__)", cwd=top,
                 path=top / "site")  # fmt: skip
    assert Path(found.strip()).is_relative_to(top / "site")
    speechlm("tokenize", "recordings", "--run", "run", "--out", "codes")
    speechlm("prepare", "lab", "--module", "my_lab.py", "--run", "run", "--out", "data",
             "--length", "64")  # fmt: skip
    return top, speechlm


def test_the_wheel_carries_tasks_and_configs_inside_the_package(wheel, setup_value, tmp_path):
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        file.extractall(tmp_path)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"speechlm_jax"}
    for folder in setup_value("SHIPPED"):
        for path in (ROOT / folder).glob("*"):
            if path.suffix in {".py", ".md"}:
                assert f"speechlm_jax/_shipped/{folder}/{path.name}" in names
    shipped = {path.name for path in (ROOT / "speechlm_jax").rglob("*") if path.is_file()}
    carried = {Path(name).name for name in names}
    assert not {name for name in shipped - carried if not name.endswith(".pyc")}
    code = (
        "from speechlm_jax import shipped\n"
        "assert shipped.root().name == '_shipped'\n"
        "assert all(shipped.find(name).is_file() for name in shipped.names())\n"
        "print(shipped.names())"
    )
    known = ast.literal_eval(_run(sys.executable, "-c", code, cwd=tmp_path))
    expected = {path for folder in ("configs", "tasks") for path in (ROOT / folder).glob("*.py")}
    assert known == sorted(path.relative_to(ROOT).as_posix() for path in expected)


def test_a_data_set_of_ones_own_from_registering_to_evaluating(lab):
    top, speechlm = lab
    made = artifacts.read_json(top / "data/lab.mixture.json")
    assert {task["name"] for task in made["tasks"]} == {"lab_text", "lab_stories", "lab_asr"}
    speechlm("train", "my_config.py", "--workdir", "lm")
    said = speechlm("evaluate", "lm", "--run", "run", "--out", "figures")
    figures = json.loads(said)["figures"]
    for task in ("lab_text", "lab_stories"):
        (loss,) = (figure for name, figure in figures.items() if name.endswith(task))
        assert 1.0 < loss["value"] < 12.0 and loss["count"] > 0


def test_a_training_host_needs_no_tensorflow(wheel, lab, heavy, tmp_path):
    _run(sys.executable, "-m", "venv", tmp_path / "slim", cwd=tmp_path)
    python = tmp_path / "slim/bin/python"
    pip = (python, "-m", "pip", "install", "--quiet")
    constraints = ("-c", ROOT / "constraints.txt", "-r", ROOT / "requirements-train.txt")
    _run(*pip, *constraints, cwd=tmp_path)
    _run(*pip, "--no-deps", wheel, cwd=tmp_path)
    for name in heavy:
        absent = f"import importlib.util as u; print(u.find_spec({name.replace('-', '_')!r}))"
        assert _run(python, "-c", absent, cwd=tmp_path) == "None\n"
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (slim,) = (c for c in settings["tool"]["importlinter"]["contracts"] if c["id"] == "slim")
    modules = [name for top in slim["source_modules"] for name in _modules(top)]
    _run(python, "-c", "import " + ", ".join(modules), cwd=tmp_path)
    for folder in ("data", "my_config.py"):
        source = lab[0] / folder
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / folder)
    _run(tmp_path / "slim/bin/speechlm", "train", "my_config.py", "--workdir", "lm", cwd=tmp_path)
    metrics = list(artifacts.read_jsonl(tmp_path / "lm/metrics.jsonl"))
    assert metrics[-1]["step"] == 3 and all(
        0 < row["loss"] < 12 for row in metrics if "loss" in row
    )


def _modules(name: str) -> list[str]:
    """A module, or a room and every module in it."""
    spec = importlib.util.find_spec(name)
    assert spec is not None, name
    folders = spec.submodule_search_locations or []
    inside = [path.stem for folder in folders for path in Path(folder).glob("*.py")]
    return [name, *(f"{name}.{stem}" for stem in sorted(inside) if re.match(r"[a-z]", stem))]
