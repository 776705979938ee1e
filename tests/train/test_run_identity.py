"""What is said of two runs that differ, and which configs are of one run."""

import dataclasses
from pathlib import Path

import pytest
from toy_stage import make_stage

from speechlm_jax import config as configs
from speechlm_jax.data.plan import MixturePlan, Phase, TaskRows
from speechlm_jax.errors import UserError
from speechlm_jax.train.checkpoint_folder import Meta
from speechlm_jax.train.loop import TrainConfig
from speechlm_jax.train.run_identity import check_run_identity

STAGE = dataclasses.replace(make_stage(), identity={"vocabulary": "v1"})
CONFIG = TrainConfig(total_steps=3)
FOLDER = Path("run/checkpoints/00000001")
PLAN = MixturePlan((TaskRows("a", 2, 3, 4, "f"), TaskRows("b", 5, 6, 7)), (Phase("p", (3, 4)),), 1)


def meta_of(stage, config):
    return Meta(
        stage.name, 1, 1, dict(stage.identity), configs.to_json(config), "f", {}, stage.described
    )


def planned(plan):
    return dataclasses.replace(
        STAGE, identity={"plan": plan.fingerprint}, described={"plan": plan.described}
    )


def refused(theirs, mine, stage=STAGE, other=STAGE):
    with pytest.raises(UserError) as caught:
        check_run_identity(FOLDER, meta_of(stage, theirs), other, mine)
    said = str(caught.value)
    assert said.startswith(f"{FOLDER}: was trained with ") and "\n" not in said
    return said


def test_every_field_that_differs_is_named_with_both_values():
    mine = configs.override(CONFIG, ["total_steps=4", "optimizer.peak=0.1", "log_every_steps=9"])
    said = refused(CONFIG, mine)
    assert "total_steps=3, this run has 4" in said
    assert "optimizer.peak=0.001, this run has 0.1" in said
    assert "log_every_steps" not in said and "more" not in said


def test_of_many_differences_some_are_named_and_the_rest_counted():
    theirs, mine = ({f"f{i}": i + more for i in range(20)} for more in (0, 1))
    said = refused(theirs, mine)
    assert "f0=0, this run has 1" in said and "; and 14 more; use another" in said


def test_what_may_change_is_of_the_same_run():
    mine = configs.override(CONFIG, ["mesh.tensor=2", "save_every_steps=9", "hang_seconds=1"])
    check_run_identity(FOLDER, meta_of(STAGE, CONFIG), STAGE, mine)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (dataclasses.replace(PLAN, seed=2), ["plan.seed=1, this run has 2"]),
        (
            MixturePlan((TaskRows("a", 9, 3, 4, "f"), PLAN.tasks[1]), PLAN.phases, 1),
            ["plan.tasks.a.rows=2, this run has 9"],
        ),
        (
            dataclasses.replace(PLAN, phases=(Phase("q", (3, 5)),)),
            ["plan.phases[0].name='p', this run has 'q'", "rows.b=4, this run has 5"],
        ),
        (MixturePlan((PLAN.tasks[0],), (Phase("p", (3,)),), 1), ["plan.tasks.b=", "has none"]),
    ],
)  # fmt: skip
def test_another_plan_is_told_by_what_it_holds(plan, words):
    said = refused(CONFIG, CONFIG, planned(PLAN), planned(plan))
    assert all(word in said for word in words), said
    assert PLAN.fingerprint not in said


def test_a_checkpoint_that_does_not_say_what_its_plan_held_still_gives_a_line():
    old = dataclasses.replace(planned(PLAN), described={})
    new = planned(dataclasses.replace(PLAN, seed=2))
    said = refused(CONFIG, CONFIG, old, new)
    assert f"plan {PLAN.fingerprint}, this run has" in said and "prepared anew" in said
    assert "prepared anew" not in refused(CONFIG, TrainConfig(9), old, new)


def test_differences_of_equal_data_are_none():
    data = configs.to_json(CONFIG)
    assert not list(configs.differences(data, data))
    assert list(configs.differences({"a": [1, 2]}, {"a": [1]})) == ["a=[1, 2], this run has [1]"]
    assert list(configs.differences({}, {"a": 1})) == ["no a, this run has 1"]


def test_a_field_that_came_since_is_of_the_same_run_at_its_default():
    @dataclasses.dataclass(frozen=True)
    class Newer:
        seed: int = 0
        plain: int = 5
        late: float = configs.added(0.25, before=0.0)

    meta = dataclasses.replace(meta_of(STAGE, CONFIG), config={"class": "Newer", "seed": 0})
    check_run_identity(FOLDER, meta, STAGE, Newer(late=0.0))
    for mine, words in ((Newer(), "late=0.0, this run has 0.25"), (Newer(0, 6, 0.0), "plain=5")):
        with pytest.raises(UserError, match=words):
            check_run_identity(FOLDER, meta, STAGE, mine)
    gone = dataclasses.replace(meta, config={**meta.config, "gone": 3})
    with pytest.raises(UserError, match="gone=3, this run has none"):
        check_run_identity(FOLDER, gone, STAGE, Newer(late=0.0))
