"""Configs: JSON round trips, strict overrides, fingerprints, files loaded by path."""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from speechlm_jax import config as configs
from speechlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Cosine:
    peak: float = 1e-3
    warmup_steps: int = 10


@dataclasses.dataclass(frozen=True)
class Constant:
    peak: float = 1e-3


@dataclasses.dataclass(frozen=True)
class Experiment:
    name: str
    total_steps: int = 100
    is_causal: bool = True
    floor: Literal["clip", "fixed"] = "clip"
    widths: tuple[int, ...] = (8, 16)
    pair: tuple[str, float] = ("a", 0.5)
    shares: dict[str, float] = dataclasses.field(default_factory=dict)
    schedule: Cosine | Constant = Cosine()
    limit: int | None = None
    folder: Path = Path("runs")


EXPERIMENT = Experiment(
    "x", shares={"text": 0.3}, schedule=Constant(0.5), limit=4, folder=Path("a/b"), widths=()
)
OTHER_VALUES: dict[str, Any] = {
    "name": "y",
    "total_steps": 101,
    "is_causal": False,
    "floor": "fixed",
    "widths": (8,),
    "pair": ("a", 0.25),
    "shares": {"text": 0.4},
    "schedule": Cosine(0.5),
    "limit": None,
    "folder": Path("a/c"),
}


@pytest.mark.parametrize("config", [EXPERIMENT, Experiment("y")])
def test_json_and_back_is_the_same_config(config):
    data = configs.to_json(config)
    assert json.loads(json.dumps(data)) == data
    assert configs.from_json(Experiment, data) == config


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Experiment)])
def test_the_fingerprint_changes_with_every_field(field):
    changed = dataclasses.replace(EXPERIMENT, **{field: OTHER_VALUES[field]})
    assert configs.fingerprint(changed) != configs.fingerprint(EXPERIMENT)
    assert configs.fingerprint(dataclasses.replace(EXPERIMENT)) == configs.fingerprint(EXPERIMENT)


def test_the_fingerprint_sees_the_class_and_not_the_order_of_keys():
    assert configs.fingerprint(Cosine()) != configs.fingerprint(Constant())
    assert configs.fingerprint({"a": 1, "b": 2}) == configs.fingerprint({"b": 2, "a": 1})
    assert configs.fingerprint(EXPERIMENT) == configs.fingerprint(configs.to_json(EXPERIMENT))


@pytest.mark.parametrize(
    ("assignment", "field", "value"),
    [
        ("total_steps=7", "total_steps", 7),
        ("name=digits", "name", "digits"),
        ('name="7"', "name", "7"),
        ("is_causal=false", "is_causal", False),
        ("is_causal=False", "is_causal", False),
        ("widths=[1, 2, 3]", "widths", (1, 2, 3)),
        ('shares={"text": 1}', "shares", {"text": 1.0}),
        ("limit=null", "limit", None),
        ("limit=None", "limit", None),
        ("limit=3", "limit", 3),
        ("floor=fixed", "floor", "fixed"),
        ("folder=c/d", "folder", Path("c/d")),
        ("schedule.peak=2", "schedule", Constant(2.0)),
        ('schedule={"class": "Cosine", "peak": 2}', "schedule", Cosine(2.0)),
    ],
)
def test_an_override_changes_one_field(assignment, field, value):
    changed = configs.override(EXPERIMENT, [assignment])
    assert getattr(changed, field) == value
    assert type(getattr(changed, field)) is type(value)
    assert dataclasses.replace(changed, **{field: getattr(EXPERIMENT, field)}) == EXPERIMENT


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("total_step=7", ["total_step", "did you mean 'total_steps'?"]),
        ("schedule.peek=7", ["schedule.peek", "did you mean 'peak'?"]),
        ("name.x=7", ["name.x", "has no field 'x'"]),
        ("total_steps", ["field=value"]),
        ("total_steps=many", ["total_steps", "'many'", "int"]),
        ("total_steps=7.5", ["total_steps", "7.5", "int"]),
        ("total_steps=true", ["total_steps", "True", "int"]),
        ("is_causal=1", ["is_causal", "bool"]),
        ("floor=clipped", ["floor", "'clip', 'fixed'"]),
        ('pair=["a"]', ["pair", "2 values"]),
        ("limit=x", ["limit", "int or null"]),
    ],
)
def test_a_wrong_override_says_what_is_wrong_in_one_line(assignment, words):
    with pytest.raises(UserError) as caught:
        configs.override(EXPERIMENT, [assignment])
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_from_json_refuses_what_is_missing_or_unknown():
    data = configs.to_json(EXPERIMENT)
    with pytest.raises(UserError, match="unknown field 'limits'; did you mean 'limit'"):
        configs.from_json(Experiment, {**data, "limits": 1})
    with pytest.raises(UserError, match="name"):
        configs.from_json(Experiment, {key: data[key] for key in data if key != "name"})


@dataclasses.dataclass(frozen=True)
class Inner:
    speed: int = 1
    places: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outer:
    MOVED: ClassVar[dict[str, str]] = {
        "pace": "inner.speed",
        "places": "inner.places",
        "title": "name",
    }
    name: str = "x"
    inner: Inner = Inner()


@dataclasses.dataclass(frozen=True)
class Whole:
    part: Outer = Outer()


@pytest.mark.parametrize("name", ["name", "title"])
def test_fields_that_have_moved_are_read_where_they_were(name):
    data = {"class": "Outer", name: "y", "pace": 3, "places": ["a"]}
    assert configs.from_json(Outer, data) == Outer("y", Inner(3, ("a",)))
    assert configs.upgraded(data, Outer()) == configs.to_json(Outer("y", Inner(3, ("a",))))
    assert configs.from_json(Whole, {"part": data}).part.inner.speed == 3
    with pytest.raises(UserError, match="Outer.inner.speed: 'fast' is not of type int"):
        configs.from_json(Outer, {"pace": "fast"})


def test_an_override_of_a_field_that_has_moved_names_the_new_one():
    for given, now in (("part.pace", "part.inner.speed"), ("part.title", "part.name")):
        with pytest.raises(UserError, match=f"^{given}: is now {now}$"):
            configs.override(Whole(), [f"{given}=3"])


@dataclasses.dataclass(frozen=True)
class First:
    steps: int = 1


@dataclasses.dataclass(frozen=True)
class Second:
    steps: int = 1
    late: float = configs.added(0.0)
    other: bool = configs.added(True, before=False)


Second.__name__ = "First"


@pytest.mark.parametrize("old", [First(), {"x": [First(3), First(2)]}], ids=["alone", "deep"])
def test_a_field_that_came_is_no_part_of_a_fingerprint_while_it_means_what_was(old):
    def newer(value, **fields):
        if isinstance(value, First):
            return Second(value.steps, **{"other": False, **fields})
        if isinstance(value, dict):
            return {key: newer(item, **fields) for key, item in value.items()}
        return [newer(item, **fields) for item in value]

    same = newer(old)
    assert configs.fingerprint(same) == configs.fingerprint(old)
    assert configs.upgraded(configs.to_json(old), same) == configs.to_json(same)
    assert configs.to_json(same, whole=False) == configs.to_json(old)
    for change in ({"late": 0.5}, {"other": True}):
        assert configs.fingerprint(newer(old, **change)) != configs.fingerprint(old)
        assert configs.upgraded(configs.to_json(old), same) != configs.to_json(newer(old, **change))


def test_what_was_begun_keeps_what_was_the_default():
    assert configs.as_started(Second(), {"class": "First", "steps": 1}) == Second(other=False)
    assert configs.as_started(Second(), configs.to_json(Second(other=False))).other is False
    assert configs.as_started(Second(), configs.to_json(Second())).other is True
    assert configs.as_started(Second(late=0.5), {}).late == 0.5
    assert configs.as_started(Second(), []) == Second()
    assert configs.from_json(Second, {"class": "First"}) == Second(other=False)


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["=3"], "an override is written field=value"),
        (["."], "an override is written field=value"),
        (["schedule..peak=3"], "an override is written field=value"),
        ([".name=3"], "an override is written field=value"),
        (["total_steps=1", "total_steps=2"], "total_steps: is given twice, and differently"),
        (["schedule={}", "schedule.peak=2"], "schedule.peak: 'schedule' is also given as a whole"),
        (["schedule.peak=2", "schedule={}"], "schedule: is given twice, and differently"),
        (["limit.x=2"], "limit.x: 'limit' is 4, it has no field 'x'; give limit as a whole"),
        (["total_steps=1=2"], "total_steps: '1=2' is not of type int"),
        (["total steps=1"], "total steps: unknown field 'total steps'"),
        (["schedule . peak=1"], "unknown field 'schedule '"),
        (["limit=[1]"], r"limit: .1. is not of type int or null"),
        (["floor=[]"], r"floor: \[\] is not one of 'clip'"),
        (["floor={}"], r"floor: \{\} is not one of 'clip'"),
        (["pair=[1, 2, 3]"], "pair: takes 2 values, not 3"),
        (['pair=["a", "b"]'], r"pair\[1\]: 'b' is not of type float"),
        (["pair=ab"], "pair: 'ab' is not of type tuple"),
        (['schedule={"class": "Cosine", "peek": 2}'], "schedule: unknown field 'peek'"),
        (['schedule={"class": "Other"}'], "schedule: .* is not of type Cosine or Constant"),
        (["schedule.peak=NaN"], "schedule.peak: nan is no finite number"),
        (["schedule.peak=1e999"], "schedule.peak: inf is no finite number"),
        ([f"total_steps={10**30}"], "does not fit into 64 bits"),
        (["total_steps=" + "1" * 5000], "total_steps: '111.*' is not of type int"),
        (["total_steps=" + "[" * 100_000], "total_steps: (is nested too deeply|.* of type int)"),
        (["name=\udc80"], "name: .* is not text in UTF-8"),
    ],
)
def test_overrides_that_cannot_be_read_are_one_line(assignments, words):
    with pytest.raises(UserError, match=words) as caught:
        configs.override(EXPERIMENT, assignments)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_an_override_that_is_said_twice_alike_is_fine():
    assert configs.override(EXPERIMENT, ["name=a=b", " name = a=b "]).name == "a=b"


@pytest.mark.parametrize("data", [[], 3, None, {"class": "Cosine"}, {"class": []}, {"name": {}}])
def test_data_of_another_shape_is_one_line(data):
    with pytest.raises(UserError, match="^Experiment"):
        configs.from_json(Experiment, data)


def test_a_config_file_is_loaded_by_path(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import dataclasses\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Mine:\n    steps: int = 3\n"
        "def config():\n    return Mine()\n"
    )
    assert configs.load(path).steps == 3
    assert configs.override(configs.load(path), ["steps=4"]).steps == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such config file"),
        ("a = 1\n", "config()"),
        ("config = dict\n", "not a dataclass"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path, text, words):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as caught:
        configs.load(path)
    assert str(path) in str(caught.value) and words in str(caught.value)
