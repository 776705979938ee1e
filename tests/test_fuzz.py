"""A small part of the fuzzer (benchmarks/fuzz.py): each parser refuses broken input in one line."""

import random
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import fuzz  # noqa: E402
from fuzz_targets import TARGETS  # noqa: E402

sys.path.remove(str(BENCHMARKS))
INPUTS = 12  # for each share of a target


@pytest.mark.parametrize("name", TARGETS)
def test_broken_input_is_refused_in_one_line_and_soon(name):
    target = TARGETS[name]
    found = fuzz.run_inputs(target, 0, range(INPUTS * target.share), lambda number: None)
    assert found["found"] == {}
    assert found.get("value", 0), "no whole input comes through"


def test_an_input_can_be_made_again():
    seeds = [b'{"a": [1, 2]}', b"abc"]
    made = [fuzz.make_input(1, "a", number, seeds) for number in range(200)]
    assert made == [fuzz.make_input(1, "a", number, seeds) for number in range(200)]
    assert len(set(made)) > 100 and seeds[0] in made and seeds[1] in made


def test_what_goes_wrong_is_seen(monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.05)

    def parse(data):
        if data == b"slow":
            while True:
                random.random()
        if data == b"lines":
            raise ValueError("a\nb")
        raise {b"bug": KeyError("x"), b"bad": ValueError("no")}[data]

    def outcome(data):
        return fuzz.outcome(parse, data, (ValueError,))

    assert outcome(b"bad") == "refused"
    assert outcome(b"bug").startswith("KeyError at ")
    assert outcome(b"lines").startswith("more than one line")
    assert outcome(b"slow").startswith("more than 0.05 s")
