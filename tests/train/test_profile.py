"""Some steps are traced, and a range that is none is refused; W&B gets what the log gets."""

import dataclasses
import sys
import types

import pytest
from toy_stage import CONFIG, make_stage

from speechlm_jax import artifacts
from speechlm_jax.errors import UserError
from speechlm_jax.train.loop import fit
from speechlm_jax.train.profile import Profile


def test_the_steps_of_the_window_are_traced(tmp_path):
    config = dataclasses.replace(CONFIG, total_steps=8, profile_steps=(3, 4))
    fit(make_stage(), config, tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("first, last", [(5, 4), (-1, 3)])
def test_a_range_that_is_none_is_refused(tmp_path, first, last):
    with pytest.raises(UserError, match=rf"\({first}, {last}\) is no range"):
        Profile(tmp_path, first, last)


def test_weights_and_biases_gets_the_lines_of_the_log(tmp_path, monkeypatch):
    lines = []
    run = types.SimpleNamespace(
        log=lambda figures, step: lines.append({"step": step, **figures}),
        finish=lambda: lines.append("finished"),
    )
    given = []
    fake = types.ModuleType("wandb")
    fake.init = lambda **options: given.append(options) or run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = dataclasses.replace(CONFIG, total_steps=8, wandb_project="mine")
    fit(make_stage(), config, tmp_path / "lm")
    assert lines.pop() == "finished"
    assert lines == list(artifacts.read_jsonl(tmp_path / "lm/metrics.jsonl"))
    assert given[0]["project"] == "mine"


def test_without_it_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = dataclasses.replace(CONFIG, wandb_project="mine")
    with pytest.raises(UserError, match=r"pip install -e '\.\[wandb\]'"):
        fit(make_stage(), config, tmp_path)
