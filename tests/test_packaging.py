"""What an installation asks for: requirements that agree with each other and with the imports."""

import ast
import itertools
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def _lines(file: str) -> list[str]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize(
    "file, extra", [("constraints.txt", ["oracles"]), ("constraints-newest.txt", [])]
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
