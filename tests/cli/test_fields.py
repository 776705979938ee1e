"""`train --show`: every field of every config has a name that overrides take, and a meaning."""

import dataclasses
import json
import typing

import pytest

from speechlm_jax import config as configs
from speechlm_jax import shipped
from speechlm_jax.cli import main as cli
from speechlm_jax.cli.fields import config_to_fields, in_words, meanings
from speechlm_jax.experiment.configs import EXPERIMENTS, load_experiment

FILES = [name for name in shipped.names() if name.startswith("configs/")]


def classes(hint: typing.Any) -> set[type]:
    """All dataclasses that a type names, and those of their fields."""
    found: set[type] = set()
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        found = {hint}.union(*(classes(hints[field.name]) for field in dataclasses.fields(hint)))
    return found.union(*map(classes, typing.get_args(hint)))


ALL = sorted(set().union(*map(classes, EXPERIMENTS.values())), key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_a_docstring_says_what_each_field_means_and_of_no_other(cls):
    assert {field.name for field in dataclasses.fields(cls)} == meanings(cls).keys()


def test_types_are_said_in_words():
    assert in_words(int | None) == "whole number or null"
    assert in_words(tuple[int, int]) == "list of 2 of whole number"
    assert in_words(tuple[str, ...]) == "list of text"
    assert in_words(typing.Literal["a", "b"]) == "one of a, b"
    assert in_words(dict[str, float]) == "number by name"


@pytest.mark.parametrize("name", FILES)
def test_what_is_shown_can_be_given_as_overrides(name, monkeypatch, capsys):
    config = load_experiment(shipped.find(name))
    assert cli.main(["train", name, "--show", "train.seed=7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [line for line in lines if not line.startswith(" ")]
    assert "train.seed=7" in shown and not [line for line in lines if "see its class" in line]
    values = {field.name: field.value for field in config_to_fields(config)}
    assert len(shown) == len(values)
    assert configs.override(config, shown) == configs.override(config, ["train.seed=7"])
    assert json.loads(shown[0].partition("=")[2]) == next(iter(values.values()))
