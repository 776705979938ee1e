"""What an installation asks for: requirements that agree with each other and with the imports."""

import ast
import itertools
import re
import runpy
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import setuptools
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from speechlm_jax import __version__

ROOT = Path(__file__).resolve().parents[1]


def _lines(file: str) -> list[str]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize(
    "file, extra", [("constraints.txt", ["oracles", "docs"]), ("constraints-newest.txt", [])]
)
def test_setup_pins_nothing_and_the_tested_sets_satisfy_it(setup_value, file, extra):
    exact = {}
    for line in _lines(file):
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        exact[canonicalize_name(requirement.name)] = specifier.version
    extras = setup_value("EXTRAS")
    groups = (extras[name] for name in ("espeak", "dev", "gcs", "hf", *extra))
    installed = [*setup_value("REQUIRED"), *itertools.chain.from_iterable(groups)]
    for requirement in map(Requirement, installed):
        assert "==" not in str(requirement.specifier)
        assert exact[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_the_slim_set_is_part_of_the_whole_and_has_no_tensorflow(setup_value, heavy):
    slim = _lines("requirements-train.txt")
    assert set(slim) <= {*setup_value("REQUIRED"), *setup_value("EXTRAS")["gcs"]}
    assert not {Requirement(line).name for line in slim} & set(heavy)


def test_every_import_of_the_library_is_required_by_setup(setup_value):
    required = {canonicalize_name(Requirement(line).name) for line in setup_value("REQUIRED")}
    extras = {
        canonicalize_name(Requirement(e).name) for v in setup_value("EXTRAS").values() for e in v
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


@pytest.fixture
def set_up(monkeypatch):
    """set_up(): what setup.py hands to setuptools; and the functions that it defines."""
    given = {}
    monkeypatch.setattr(setuptools, "setup", lambda **fields: given.update(fields))
    monkeypatch.chdir(ROOT)
    defined = runpy.run_path(str(ROOT / "setup.py"))
    return given, defined


def test_an_index_knows_who_where_and_for_what(set_up):
    given, _ = set_up
    assert given["author"] and given["license"] == "Apache-2.0"
    assert "https://arxiv.org/abs/2411.17607" in given["project_urls"].values()
    versions = {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)}
    assert versions | {"Typing :: Typed"} <= {*given["classifiers"]}
    assert (ROOT / "speechlm_jax/py.typed").is_file() and "py.typed" in given["package_data"][""]
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert tools["build-system"]["build-backend"] == "setuptools.build_meta"


@pytest.mark.parametrize(
    ("origin", "page"),
    [
        ("https://github.com/someone/speechlm_jax.git", "https://github.com/someone/speechlm_jax"),
        ("git@github.com:a-lab/my.fork", "https://github.com/a-lab/my.fork"),
        ("https://me:secret@github.com/a/b/", "https://github.com/a/b"),
        ("/srv/git/speechlm_jax", None),
        ("", None),
    ],
)
def test_the_page_of_the_project_is_the_checkouts_own(set_up, monkeypatch, origin, page):
    _, defined = set_up
    done = subprocess.CompletedProcess([], 0, stdout=f"{origin}\n")
    monkeypatch.setattr(subprocess, "run", lambda *command, **options: done)
    assert defined["repository"]() == page


def test_an_index_shows_the_readmes_pictures_and_links(set_up):
    _, defined = set_up
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    page = "https://github.com/a/b"
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", readme)
    assert pictures
    shown = defined["readme_for_index"](readme, page)
    for picture in pictures:
        assert (ROOT / picture).is_file() and f"({page}/raw/HEAD/{picture})" in shown
    assert "](docs/" not in shown
    assert "](docs/" not in defined["readme_for_index"](readme, None)


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__ and citation["license"] == "Apache-2.0"
    assert citation["preferred-citation"]["url"].endswith("2411.17607")


def test_continuous_integration_runs_the_readmes_command():
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert "make test" in [step.get("run") for step in job["steps"]]
    assert "exec make test" in (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert workflow["permissions"] == {"contents": "read"}


def test_an_image_takes_no_history_no_runs_and_no_settings_along():
    left_out = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    made = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    folders = {line.strip("/") for line in made if line.startswith("/")} - {"dist", "build"}
    covered = {name for name in folders if any(fnmatch(name, pattern) for pattern in left_out)}
    assert covered == folders and ".git" in left_out
    dockerfile = (ROOT / "launch/gke/Dockerfile").read_text(encoding="utf-8")
    (base,) = re.findall(r"^FROM (\S+)$", dockerfile, re.M)
    assert re.search(r":\d+\.\d+\.\d+", base)  # not a tag that moves
    assert re.findall(r"^USER (\S+)$", dockerfile, re.M) not in ([], ["root"], ["0"])


def test_make_says_what_it_installed_and_where(tmp_path):
    printed = subprocess.run(
        ["make", "--dry-run", "--always-make", "quickstart"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "GPL-3" in printed and "docs/licences.md" in printed and ".venv/bin/activate" in printed
    assert (ROOT / "docs/licences.md").is_file()


def test_what_is_to_be_installed_is_the_checkout_with_an_extra_that_it_has(setup_value):
    """Nothing of this name is on an index."""
    listed = subprocess.run(
        ["git", "ls-files", "*.py", "*.md", "*.sh"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    told = "\n".join((ROOT / file).read_text(encoding="utf-8") for file in listed)
    assert not re.search(r"install [^\n]*speechlm_jax\[", told)
    named = {name for found in re.findall(r"'\.\[([\w,]+)\]'", told) for name in found.split(",")}
    assert {"espeak", "gcs", "hf", "tpu", "wandb"} <= named <= {*setup_value("EXTRAS")}
