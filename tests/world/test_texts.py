"""No text tells what it must not: checked on thousands of sentences of several worlds."""

import itertools
from collections import Counter

import numpy as np
import pytest

from speechlm_jax.errors import UserError
from speechlm_jax.world.tables import load_tables
from speechlm_jax.world.texts import (
    documents,
    random_passage,
    random_sentence,
    random_string,
    stories,
)
from speechlm_jax.world.world import World

TABLES = load_tables()
WORLDS = [World.make(TABLES, seed) for seed in range(3)]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def training_sentences(world: World) -> list[str]:
    told = [d.text for d in itertools.islice(documents(world, rng(), world.facts), 150)]
    told += [s.text for s in itertools.islice(stories(world, rng(), world.facts), 300)]
    generator = rng()
    return told + [random_sentence(world, generator) for _ in range(5_000)]


@pytest.mark.parametrize("world", WORLDS)
def test_no_training_text_asks_about_a_new_wording_fact(world):
    texts = training_sentences(world)
    asked = {f.id: TABLES.questions[f.attribute].format(person=f.person) for f in world.facts}
    for fact in world.facts:
        met = any(asked[fact.id] in text for text in texts)
        assert met == (fact.kind != "new_wording"), fact


@pytest.mark.parametrize("world", WORLDS)
def test_documents_tell_their_facts_alone_and_each_as_often(world):
    facts = world.facts_of("interleaved", "new_wording")
    made = list(itertools.islice(documents(world, rng(), facts), 200))
    told = [sentence for document in made for sentence in document.sentences]
    assert {s.fact for s in told} == set(facts)
    counts = Counter(s.fact for s in told)
    assert max(counts.values()) - min(counts.values()) <= 1
    for text_only in world.facts_of("text_only"):
        for wording in TABLES.wordings(text_only.attribute):
            sentence = wording.format(person=text_only.person, value=text_only.value)
            assert not any(sentence in document.text for document in made)


def test_documents_are_about_100_words_on_mixed_people_in_all_wordings():
    made = list(itertools.islice(documents(WORLDS[0], rng(), WORLDS[0].facts), 200))
    assert all(100 <= len(document.text.split()) < 110 for document in made)
    assert all(len({s.fact.person for s in document.sentences}) > 5 for document in made)
    wordings = Counter(s.wording for document in made for s in document.sentences)
    assert set(wordings) == set(range(8))


def test_sentences_name_the_wording_they_are_in():
    for document in itertools.islice(documents(WORLDS[0], rng(), WORLDS[0].facts), 20):
        for s in document.sentences:
            template = TABLES.wordings(s.fact.attribute)[s.wording]
            assert s.text == template.format(person=s.fact.person, value=s.fact.value)


def test_random_sentences_know_no_fact():
    """The true value is drawn as often as any other, for every kind of fact."""
    world, generator = WORLDS[0], rng(1)
    facts = {(f.person, f.attribute): f for f in world.facts}
    attribute_of = {v: name for name, values in TABLES.attributes.items() for v in values}
    true, seen = Counter(), Counter()
    for _ in range(12_000):
        words = random_sentence(world, generator).split()
        person = next(word for word in words if word in TABLES.people)
        value = next(word for word in words if word in attribute_of)
        fact = facts[person, attribute_of[value]]
        seen[fact.kind] += 1
        true[fact.kind] += fact.value == value
    for kind, count in seen.items():
        deviation = (true[kind] / count - 1 / 8) / np.sqrt(1 / 8 * 7 / 8 / count)
        assert abs(deviation) < 4, kind


def test_passages_are_running_sentences_of_the_length_asked_for():
    generator = rng(4)
    for number in (1, 5, 14, 30):
        passage = random_passage(WORLDS[0], generator, number).split()
        assert len(passage) == number and set(passage) <= set(TABLES.words)
    long = random_passage(WORLDS[0], generator, 60)
    whole = {
        wording.format(person=person, value=value)
        for name, values in TABLES.attributes.items()
        for wording in TABLES.wordings(name)
        for person in TABLES.people
        for value in values
    }
    assert sum(sentence in long for sentence in whole) >= 4


def test_random_strings_draw_every_word_alone():
    generator = rng(2)
    strings = [random_string(WORLDS[0], generator).split() for _ in range(6_000)]
    assert Counter(map(len, strings)).keys() == {3, 4, 5, 6}
    counts = Counter(word for words in strings for word in words)
    assert counts.keys() == set(TABLES.words)
    expected = counts.total() / len(counts)
    statistic = sum((count - expected) ** 2 / expected for count in counts.values())
    freedom = len(counts) - 1
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("kinds", [(), ("interleaved", "new_wording"), ("interleaved",)])
def test_stories_are_true_but_for_the_wrong_ending(kinds):
    world = WORLDS[1]
    facts = world.facts_of(*kinds)
    lengths = Counter()
    for story in itertools.islice(stories(world, rng(), facts), 300):
        lengths[len(story.sentences)] += 1
        assert len({s.fact.person for s in story.sentences}) == 1
        assert all(s.fact in facts for s in (*story.sentences, story.right))
        # The ending's fact was told, in another wording; the wrong one differs by its value alone.
        assert story.right.fact in [s.fact for s in story.sentences]
        assert story.right.text not in [s.text for s in story.sentences]
        right, wrong = story.right.text.split(), story.wrong.split()
        differing = [(a, b) for a, b in zip(right, wrong, strict=True) if a != b]
        values = TABLES.attributes[story.right.fact.attribute]
        assert len(differing) == 1 and set(differing[0]) <= set(values)
        assert differing[0][0] == story.right.fact.value
        assert story.text == f"{story.context} {story.right.text}"
    assert set(lengths) == {3, 4}


def test_texts_are_functions_of_their_generator():
    def draw(seed):
        world, generator = WORLDS[0], rng(seed)
        document = next(documents(world, generator, world.facts)).text
        story = next(stories(world, generator, world.facts))
        return document, story, random_string(world, generator), random_sentence(world, generator)

    assert draw(3) == draw(3) != draw(4)


def test_texts_are_words_of_the_world():
    for text in training_sentences(WORLDS[2]):
        assert set(text.split()) <= set(TABLES.words)


def test_without_facts_there_is_nothing_to_tell():
    with pytest.raises(UserError, match="no facts"):
        next(documents(WORLDS[0], rng(), []))
    with pytest.raises(UserError, match="nobody has two facts"):
        next(stories(WORLDS[0], rng(), WORLDS[0].facts[:1]))
