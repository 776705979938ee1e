"""What is installed: requirements that agree, a wheel with all that ships, a slim environment."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SETUP = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
HEAVY = ("seqio", "tensorflow", "tensorflow-datasets", "tensorflow-text")


def _setup_value(name: str):
    """The literal that setup.py assigns to a name."""
    for node in SETUP.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"setup.py assigns no {name}")


def _lines(file: str) -> list[str]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _run(*command: str | Path, cwd: Path) -> str:
    # An earlier run's coverage of the checkout must not leak into the new environment.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A copy of the tree, so that building leaves nothing in the checkout."""
    top = tmp_path_factory.mktemp("sources")
    for name in ("setup.py", "LICENSE", "README.md"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, top / name)
    for name in ("speechlm_jax", *_setup_value("SHIPPED")):
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


def test_setup_pins_nothing_and_the_constraints_satisfy_it():
    exact = {}
    for line in _lines("constraints.txt"):
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        exact[canonicalize_name(requirement.name)] = specifier.version
    extras = _setup_value("EXTRAS")
    installed = [*_setup_value("REQUIRED"), *extras["espeak"], *extras["dev"]]
    for requirement in map(Requirement, installed):
        assert "==" not in str(requirement.specifier)
        assert exact[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_the_slim_set_is_part_of_the_whole_and_has_no_tensorflow():
    slim = _lines("requirements-train.txt")
    assert set(slim) <= set(_setup_value("REQUIRED"))
    assert not {Requirement(line).name for line in slim} & set(HEAVY)


def test_every_import_of_the_library_is_required_by_setup():
    required = {canonicalize_name(Requirement(line).name) for line in _setup_value("REQUIRED")}
    extras = {
        canonicalize_name(Requirement(e).name) for v in _setup_value("EXTRAS").values() for e in v
    }
    names = {"orbax": "orbax-checkpoint"}
    missing = set()
    for path in (ROOT / "speechlm_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                found = [node.module]
            tops = {name.split(".")[0] for name in found} - {"speechlm_jax"}
            tops -= set(sys.stdlib_module_names)
            missing |= {canonicalize_name(names.get(top, top)) for top in tops}
    missing -= required | extras | {"tensorflow"}  # SeqIO brings its own TensorFlow
    assert not missing


@pytest.mark.slow
def test_the_wheel_carries_tasks_and_configs_inside_the_package(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        file.extractall(tmp_path)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"speechlm_jax"}
    for folder in _setup_value("SHIPPED"):
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


@pytest.mark.slow
def test_a_training_host_needs_no_tensorflow(wheel, tmp_path):
    _run(sys.executable, "-m", "venv", tmp_path / "slim", cwd=tmp_path)
    python = tmp_path / "slim/bin/python"
    pip = (python, "-m", "pip", "install", "--quiet")
    constraints = ("-c", ROOT / "constraints.txt", "-r", ROOT / "requirements-train.txt")
    _run(*pip, *constraints, cwd=tmp_path)
    _run(*pip, "--no-deps", wheel, cwd=tmp_path)
    for name in HEAVY:
        absent = f"import importlib.util as u; print(u.find_spec({name.replace('-', '_')!r}))"
        assert _run(python, "-c", absent, cwd=tmp_path) == "None\n"
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (slim,) = (c for c in settings["tool"]["importlinter"]["contracts"] if c["id"] == "slim")
    modules = [name for top in slim["source_modules"] for name in _modules(top)]
    _run(python, "-c", "import " + ", ".join(modules), cwd=tmp_path)
    assert "example:" in _run(tmp_path / "slim/bin/speechlm", "train", "--help", cwd=tmp_path)


def _modules(name: str) -> list[str]:
    """A module, or a room and every module in it."""
    spec = importlib.util.find_spec(name)
    assert spec is not None, name
    folders = spec.submodule_search_locations or []
    inside = [path.stem for folder in folders for path in Path(folder).glob("*.py")]
    return [name, *(f"{name}.{stem}" for stem in sorted(inside) if re.match(r"[a-z]", stem))]
