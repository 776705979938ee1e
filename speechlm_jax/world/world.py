"""Draws a world's facts from its tables and a seed, and decides how training tells each."""

import dataclasses
from collections.abc import Iterable
from functools import cached_property
from typing import Literal

import numpy as np

from speechlm_jax import config as configs
from speechlm_jax.world.tables import Tables

Kind = Literal["text_only", "interleaved", "new_wording"]
# Of four facts one stands only in text; of the other three one never meets the question's wording.
# Each person's facts take these in turn, each person starting at another place.
KINDS: tuple[Kind, ...] = ("text_only", "new_wording", "interleaved", "interleaved")


@dataclasses.dataclass(frozen=True)
class Fact:
    """A fact about a person, and the way in which training meets it.

    `text_only`: in text alone. `interleaved`: in speech and text. `new_wording`: in both, but never
    in the wording of the question.
    """

    person: str
    attribute: str
    value: str
    kind: Kind

    @property
    def id(self) -> str:
        """Name of the fact in item files, e.g. "anna/city"."""
        return f"{self.person}/{self.attribute}"


@dataclasses.dataclass(frozen=True)
class Question:
    """A question, its answer's start, the right value, and all values (a guess is 1 of them)."""

    fact: Fact
    text: str
    answer_lead: str
    answer: str
    choices: tuple[str, ...]

    @property
    def reply(self) -> str:
        """The answer as a sentence of a dialogue: "it is paris"."""
        return f"{self.answer_lead} {self.answer}"


@dataclasses.dataclass(frozen=True)
class World:
    """A closed world: its tables and one assignment of values and kinds, drawn from `seed`."""

    tables: Tables
    seed: int
    facts: tuple[Fact, ...]

    @classmethod
    def make(cls, tables: Tables, seed: int) -> "World":
        """Draws one value for each person and attribute, as evenly as the numbers allow.

        Kinds are balanced over attributes and people, and values over kinds: neither a kind nor a
        value can be inferred from the other, or from the attribute.
        """
        rng = np.random.default_rng((seed, 0xFAC7))
        people = [tables.people[i] for i in rng.permutation(len(tables.people))]
        facts = []
        for place, (attribute, values) in enumerate(tables.attributes.items()):
            kinds = [KINDS[(place + turn) % len(KINDS)] for turn in range(len(people))]
            order = [values[i] for i in rng.permutation(len(values))]
            # Runs of one kind take the values in turn, so that each kind meets most values.
            ranks = np.lexsort(np.stack([rng.random(len(people)), [KINDS.index(k) for k in kinds]]))
            for rank, turn in enumerate(ranks):
                facts.append(Fact(people[turn], attribute, order[rank % len(order)], kinds[turn]))
        return cls(tables, seed, tuple(sorted(facts, key=lambda fact: fact.id)))

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the tables and the assignment."""
        return configs.fingerprint({"tables": self.tables, "facts": self.facts})

    def facts_of(self, *kinds: Kind, people: Iterable[str] | None = None) -> tuple[Fact, ...]:
        """Returns the facts of these kinds (none named: all) about these people (None: all)."""
        chosen = None if people is None else set(people)
        return tuple(
            fact
            for fact in self.facts
            if (not kinds or fact.kind in kinds) and (chosen is None or fact.person in chosen)
        )

    @cached_property
    def dialogue_people(self) -> tuple[str, ...]:
        """Half of the people, by the seed: chat is tuned on them and scored on the others."""
        people = np.random.default_rng((self.seed, 0xD1A)).permutation(self.tables.people)
        return tuple(sorted(map(str, people[: len(people) // 2])))

    @cached_property
    def new_wording_pairs(self) -> frozenset[tuple[str, str]]:
        """(person, attribute) pairs whose question must not be heard or read in training."""
        return frozenset((f.person, f.attribute) for f in self.facts_of("new_wording"))

    def wordings(self, person: str, attribute: str) -> tuple[str, ...]:
        """Returns the sentences in which training may speak of this person and attribute."""
        wordings = self.tables.wordings(attribute)
        return wordings[1:] if (person, attribute) in self.new_wording_pairs else wordings

    def questions(self, facts: Iterable[Fact]) -> list[Question]:
        """Returns the question that each fact answers."""
        tables = self.tables
        return [
            Question(
                fact,
                tables.questions[fact.attribute].format(person=fact.person),
                tables.answer_lead,
                fact.value,
                tables.attributes[fact.attribute],
            )
            for fact in facts
        ]
