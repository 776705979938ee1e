"""The shipped tables keep the rules, and a user's tables that break one are told which."""

import json

import pytest

from speechlm_jax.errors import UserError
from speechlm_jax.world import tables as worlds
from speechlm_jax.world.tables import load_tables


def test_the_shipped_world_has_the_size_it_should():
    tables = load_tables()
    assert len(tables.people) == 20 and len(tables.attributes) == 4
    assert all(len(values) == 8 for values in tables.attributes.values())
    assert all(len(tables.wordings(name)) == 8 for name in tables.attributes)
    assert len(tables.words) < 100 and len(tables.entities) == 52
    assert len(tables.unseen_words) == 8 and not set(tables.unseen_words) & set(tables.words)


def test_the_question_comes_first_and_every_sentence_names_the_person_before_the_value():
    tables = load_tables()
    for name in tables.attributes:
        wordings = tables.wordings(name)
        assert wordings[0] == f"what is the {name} of {{person}} it is {{value}}"
        assert all(w.index("{person}") < w.index("{value}") for w in wordings)
        # No statement repeats the question's own words about the person.
        assert not any(f"{name} of {{person}}" in w for w in wordings[1:])


def test_a_file_reads_back_as_it_was(tmp_path):
    (tmp_path / "world.json").write_text(json.dumps(worlds.to_json(load_tables())))
    assert load_tables(tmp_path / "world.json") == load_tables()


def broken(change) -> dict:
    data = worlds.to_json(load_tables())
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d.pop("people"), "people"),
        (lambda d: d.update(peopel=[]), "unknown field 'peopel'"),
        (lambda d: d["people"].append("Zoë"), "people: 'Zoë'"),
        (lambda d: d["people"].append("new york"), "people: 'new york'"),
        (lambda d: d["people"].append("tiger"), "'tiger' stands in people too"),
        (lambda d: d["people"].append("lives"), "'lives' is a name or a value"),
        (lambda d: d.update(people=["anna"]), "people: give at least"),
        (lambda d: d.update(people="anna"), "people"),
        (lambda d: d["attributes"].update(city=["paris"]), "attributes.city: give at least"),
        (lambda d: d["attributes"].update(car=["ford", "fiat"]), "statements.car"),
        (lambda d: d["questions"].pop("city"), "questions.city: is missing"),
        (lambda d: d["questions"].update(city="where is it"), "questions.city: needs {person}"),
        (lambda d: d["questions"].update(cat="who is {person}"), "questions.cat: there is no"),
        (
            lambda d: d["statements"]["city"].append("{value} holds {person}"),
            r"statements.city\[7\]",
        ),
        (
            lambda d: d["statements"]["city"].append("{person} is at {value}!"),
            r"statements.city\[7\]",
        ),
        (
            lambda d: d["statements"]["city"].append("{person} is at {place}"),
            r"statements.city\[7\]",
        ),
        (lambda d: d["statements"]["city"].append("{person"), r"statements.city\[7\]"),
        (
            lambda d: d["statements"].update(city=["{person} is at {value}"]),
            "statements.city: give",
        ),
        (lambda d: d["statements"]["city"].append(d["statements"]["city"][0]), "twice"),
        (lambda d: d.update(answer_lead="It is"), "answer_lead"),
        (lambda d: d["unseen_words"].append("friend"), "unseen_words: 'friend'"),
    ],
)
def test_a_broken_rule_is_named_in_one_line(tmp_path, change, named):
    path = tmp_path / "world.json"
    path.write_text(json.dumps(broken(change)))
    with pytest.raises(UserError, match=named) as caught:
        load_tables(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_no_world_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_tables(tmp_path / "gone.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match="list.json"):
        load_tables(tmp_path / "list.json")
