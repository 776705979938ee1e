"""Due by its steps and at the end; missed if it logged nothing then."""

from pathlib import Path

import pytest
from toy_stage import make_stage

from speechlm_jax.train.evaluations import Evaluations
from speechlm_jax.train.goodput import Goodput
from speechlm_jax.train.stage import Evaluation


def make(workdir: Path, **every_steps: int):
    evals = tuple(Evaluation(name, n, lambda state: {}) for name, n in every_steps.items())
    stage = make_stage(evals=evals)
    return Evaluations(stage, workdir, total_steps=10, alive=lambda: None, goodput=Goodput())


def names(evaluations):
    return [one.name for one in evaluations]


def test_each_is_due_by_its_steps_and_all_are_at_the_end(tmp_path):
    evaluations = make(tmp_path, a=3, b=4)
    found = [names(evaluations.due(step)) for step in (1, 3, 4, 9, 10)]
    assert found == [[], ["a"], ["b"], ["a"], ["a", "b"]]


@pytest.mark.parametrize(
    ("logged", "missed"),
    [
        ("", ["a", "ab"]),
        ('{"step": 10, "a/x": 1}', ["ab"]),
        ('{"step": 10, "ab/x": 1}', ["a"]),
        ('{"step": 10, "loss": 1}\n{"step": 9, "a/x": 1, "ab/x": 1}', ["a", "ab"]),
        ('{"step": 10, "a/x": 1}\n{"step": 10, "ab/', ["ab"]),
    ],
)
def test_missed_is_what_was_not_logged(tmp_path, logged, missed):
    (tmp_path / "metrics.jsonl").write_text(logged)
    assert names(make(tmp_path, a=5, ab=5).missed(10)) == missed


def test_a_fresh_run_has_missed_nothing(tmp_path):
    assert make(tmp_path, a=1).missed(0) == []
