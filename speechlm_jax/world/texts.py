"""Draws texts of a world: random strings and sentences, documents of facts, two-ended stories.

Every function draws from the generator it is given, and from nothing else.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from speechlm_jax.errors import UserError
from speechlm_jax.world.world import Fact, World

STRING_WORDS = (3, 6)
STORY_SENTENCES = (3, 4)


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A fact in one of its wordings, numbered as in `Tables.wordings` (0 asks)."""

    text: str
    fact: Fact
    wording: int


@dataclasses.dataclass(frozen=True)
class Document:
    """A sequence of sentences."""

    sentences: tuple[Sentence, ...]

    @property
    def text(self) -> str:
        """The document as one line of words."""
        return " ".join(sentence.text for sentence in self.sentences)


@dataclasses.dataclass(frozen=True)
class Story:
    """True sentences about one person, and two endings of which one is true.

    Both endings tell the attribute of one of the story's sentences, in one other wording.
    """

    sentences: tuple[Sentence, ...]
    right: Sentence
    wrong: str

    @property
    def context(self) -> str:
        """The story without its ending."""
        return " ".join(sentence.text for sentence in self.sentences)

    @property
    def text(self) -> str:
        """The story with its right ending."""
        return f"{self.context} {self.right.text}"


def random_string(world: World, rng: np.random.Generator) -> str:
    """Returns 3 to 6 words of the world, each drawn alone, so that only their sounds tell them."""
    count = rng.integers(STRING_WORDS[0], STRING_WORDS[1] + 1)
    return " ".join(rng.choice(world.tables.words, count))


def random_sentence(world: World, rng: np.random.Generator) -> str:
    """Returns a sentence that pairs a person and a value at random: it tells nothing about facts.

    The true value is drawn as often as any other. If a fact must not meet the question's wording,
    no random sentence uses that wording for its person and attribute either, whatever the value.
    """
    tables = world.tables
    person = str(rng.choice(tables.people))
    attribute = str(rng.choice(list(tables.attributes)))
    value = str(rng.choice(tables.attributes[attribute]))
    wordings = world.wordings(person, attribute)
    return wordings[rng.integers(len(wordings))].format(person=person, value=value)


def random_passage(world: World, rng: np.random.Generator, num_words: int) -> str:
    """Returns `num_words` words of random sentences in sequence, cut anywhere, as spans are."""
    words = random_sentence(world, rng).split()
    start = int(rng.integers(len(words)))
    while len(words) < start + num_words:
        words += random_sentence(world, rng).split()
    return " ".join(words[start : start + num_words])


def tell(world: World, fact: Fact, rng: np.random.Generator) -> Sentence:
    """Returns a fact in a wording that training may use for it."""
    allowed = world.wordings(fact.person, fact.attribute)
    chosen = allowed[rng.integers(len(allowed))]
    number = world.tables.wordings(fact.attribute).index(chosen)
    return Sentence(chosen.format(person=fact.person, value=fact.value), fact, number)


def documents(
    world: World, rng: np.random.Generator, facts: Sequence[Fact], *, num_words: int = 100
) -> Iterator[Document]:
    """Yields documents of at least `num_words` words, about mixed people, without end.

    Each pass over the facts tells every one once, in an order of its own.
    """
    if not facts:
        raise UserError(
            "documents: there are no facts of this kind to tell; give the world more people"
        )
    order: list[int] = []
    while True:
        sentences: list[Sentence] = []
        count = 0
        while count < num_words:
            order = order or list(rng.permutation(len(facts)))
            sentences.append(tell(world, facts[order.pop()], rng))
            count += len(sentences[-1].text.split())
        yield Document(tuple(sentences))


def stories(world: World, rng: np.random.Generator, facts: Sequence[Fact]) -> Iterator[Story]:
    """Yields stories of 3 or 4 sentences about people with at least two of `facts`, without end.

    Sentences tell different facts as long as the person has more; the ending returns to one.
    """
    by_person: dict[str, list[Fact]] = {}
    for fact in facts:
        by_person.setdefault(fact.person, []).append(fact)
    people = [person for person, theirs in by_person.items() if len(theirs) > 1]
    if not people:
        raise UserError(
            "stories: nobody has two facts of this kind; give the world more attributes"
        )
    while True:
        theirs = by_person[people[rng.integers(len(people))]]
        yield _story(world, rng, [theirs[i] for i in rng.permutation(len(theirs))])


def _story(world: World, rng: np.random.Generator, facts: Sequence[Fact]) -> Story:
    count = int(rng.integers(STORY_SENTENCES[0], STORY_SENTENCES[1] + 1))
    sentences: list[Sentence] = []
    while len(sentences) < count:
        told = tell(world, facts[len(sentences) % len(facts)], rng)
        if told not in sentences:
            sentences.append(told)
    fact = sentences[rng.integers(count)].fact
    right = tell(world, fact, rng)
    while right in sentences:
        right = tell(world, fact, rng)
    others = [value for value in world.tables.attributes[fact.attribute] if value != fact.value]
    template = world.tables.wordings(fact.attribute)[right.wording]
    wrong = template.format(person=fact.person, value=others[rng.integers(len(others))])
    return Story(tuple(sentences), right, wrong)
