"""What a user's code is called by changes when the code does, wherever in the user's files."""

import dataclasses
import functools
import importlib.util
import sys

from speechlm_jax.data.code_identity import code_identity


def test_code_identity_sees_code_and_plain_values():
    def make(number):
        return lambda row: row["n"] == number

    assert code_identity(make(1)) == code_identity(make(1)) != code_identity(make(2))
    assert code_identity(functools.partial(make, 1)) != code_identity(functools.partial(make, 2))
    assert code_identity(make(object())) == code_identity(make(object()))


def test_code_identity_sees_what_an_object_that_is_called_holds():
    @dataclasses.dataclass
    class Take:
        field: str

        def __call__(self, row):
            return row[self.field]

        def method(self, row):
            return row[self.field]

    @functools.cache
    def cached(row):
        return row

    assert code_identity(Take("a")) == code_identity(Take("a")) != code_identity(Take("b"))
    assert code_identity(Take("a").method) != code_identity(Take("b").method)
    assert "self.field" in str(code_identity(Take("a"))) and "return row" in str(
        code_identity(cached)
    )
    assert code_identity(len) == ["len", []]


LAB = """
import re
import math
from helpers import shout
WORDS = {"a", "b", "c"}
MARK = re.compile("x")
STATE = object()
class Taker:
    limit = 3
    def take(self, row):
        return clean(row)
def clean(row):
    return row["n"] > LEAST and MARK.search(row["t"])
LEAST = 5
def keep(row):
    return any(clean(one) for one in [row]) and math.pi and STATE and keep
def build():
    return [Taker().take(r) for r in WORDS]
def loud(row):
    return shout(row)
"""
HELPERS = "def shout(row):\n    return row.upper()\n"


def lab_identities(folder, monkeypatch, lab=LAB, helpers=HELPERS) -> list:
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    for name, text in (("helpers", helpers), ("lab", lab)):
        (folder / f"{name}.py").write_text(text)
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    return [code_identity(getattr(module, name)) for name in ("keep", "build", "loud")]


def test_helpers_and_constants_of_a_users_module_are_part_of_what_calls_them(tmp_path, monkeypatch):
    whole = lab_identities(tmp_path / "0", monkeypatch)
    assert whole == lab_identities(tmp_path / "same", monkeypatch), "no address, no folder"
    changes = (
        ({"lab": LAB.replace("LEAST = 5", "LEAST = 6")}, [True, True, False]),
        ({"lab": LAB.replace('compile("x")', 'compile("x", re.I)')}, [True, True, False]),
        ({"lab": LAB.replace('"c"}', '"d"}')}, [False, True, False]),
        ({"lab": LAB.replace("limit = 3", "limit = 4")}, [False, True, False]),
        ({"lab": LAB.replace('row["n"] >', 'row["n"] <')}, [True, True, False]),
        ({"helpers": HELPERS.replace("upper", "lower")}, [False, False, True]),
    )
    for number, (change, differs) in enumerate(changes, 1):
        changed = lab_identities(tmp_path / str(number), monkeypatch, **change)
        assert [a != b for a, b in zip(whole, changed, strict=True)] == differs, change


def test_code_that_is_installed_is_named_by_its_own_source_alone():
    assert len(code_identity(importlib.util.find_spec)) == 2
