"""The assignment: sizes, balance, and nothing that can be guessed from it."""

from collections import Counter

import pytest

from speechlm_jax.world.tables import Tables, load_tables
from speechlm_jax.world.world import World

TABLES = load_tables()
SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_person_has_one_value_of_every_attribute(seed):
    world = World.make(TABLES, seed)
    assert len(world.facts) == len({fact.id for fact in world.facts}) == 80
    assert all(fact.value in TABLES.attributes[fact.attribute] for fact in world.facts)


@pytest.mark.parametrize("seed", SEEDS)
def test_kinds_have_their_sizes_and_are_balanced(seed):
    world = World.make(TABLES, seed)
    assert Counter(fact.kind for fact in world.facts) == {
        "text_only": 20,
        "new_wording": 20,
        "interleaved": 40,
    }
    for attribute in TABLES.attributes:
        mine = [fact for fact in world.facts if fact.attribute == attribute]
        assert Counter(f.kind for f in mine) == {
            "text_only": 5,
            "new_wording": 5,
            "interleaved": 10,
        }
        # No value is much more frequent than a guess at random makes it.
        assert set(Counter(f.value for f in mine).values()) <= {2, 3}
        for kind in ("text_only", "new_wording"):
            assert len({f.value for f in mine if f.kind == kind}) == 5
        assert len({f.value for f in mine if f.kind == "interleaved"}) == 8
    for person in TABLES.people:
        assert len(world.facts_of("text_only", people=[person])) == 1
        assert len(world.facts_of("new_wording", people=[person])) == 1


def test_the_seed_decides_values_and_kinds():
    first, again, other = (World.make(TABLES, seed) for seed in (0, 0, 1))
    assert first == again and first.fingerprint == again.fingerprint != other.fingerprint
    same_value = sum(a.value == b.value for a, b in zip(first.facts, other.facts, strict=True))
    same_kind = sum(a.kind == b.kind for a, b in zip(first.facts, other.facts, strict=True))
    assert same_value < 30 and same_kind < 55


def test_over_seeds_every_value_and_kind_is_as_likely_as_it_should_be():
    worlds = [World.make(TABLES, seed) for seed in range(400)]
    fact = [next(f for f in w.facts if f.id == "anna/city") for w in worlds]
    values, kinds = Counter(f.value for f in fact), Counter(f.kind for f in fact)
    assert len(values) == 8 and max(values.values()) < 80 and min(values.values()) > 25  # 50 each
    assert 140 < kinds["interleaved"] < 260 and 60 < kinds["text_only"] < 140


def test_questions_have_the_right_answer_among_all_values():
    world = World.make(TABLES, 0)
    for question in world.questions(world.facts):
        assert question.fact.person in question.text.split()
        assert question.answer == question.fact.value and question.answer in question.choices
        assert len(question.choices) == 8
        assert question.reply == f"it is {question.answer}"
        asked = f"{question.text} {question.reply}"
        wording = TABLES.wordings(question.fact.attribute)[0]
        assert asked == wording.format(person=question.fact.person, value=question.answer)


def test_dialogues_are_about_half_of_the_people():
    world = World.make(TABLES, 0)
    assert len(world.dialogue_people) == 10 and set(world.dialogue_people) < set(TABLES.people)
    assert world.dialogue_people != World.make(TABLES, 1).dialogue_people


def test_a_small_world_of_other_numbers_works():
    tables = Tables(
        people=("ann", "bob", "cat", "dan", "eve", "fay", "gus"),
        attributes={"pet": ("cow", "dog", "pig")},
        questions={"pet": "what has {person}"},
        answer_lead="a",
        statements={
            "pet": ("{person} has {value}", "{person} holds {value}", "see {person} and {value}")
        },
        unseen_words=(),
    )
    world = World.make(tables, 0)
    assert Counter(fact.kind for fact in world.facts) == {
        "text_only": 2,
        "new_wording": 2,
        "interleaved": 3,
    }
