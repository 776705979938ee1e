"""The tables of a closed world: its people, attributes and values, and the sentences of facts."""

import dataclasses
import re
import string
from functools import cached_property
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.errors import UserError

SHIPPED = Path(__file__).with_name("world.json")
# A story may tell a fact twice and end on it in a third wording that is not the question's.
MIN_PEOPLE, MIN_VALUES, MIN_STATEMENTS = 4, 2, 3


@dataclasses.dataclass(frozen=True)
class Tables:
    """A world without its facts. All text is lower-case a-z words; people and values are one word.

    Attributes:
      people: names.
      attributes: attribute -> its values.
      questions: attribute -> a question with {person}.
      answer_lead: words that start every answer; the value follows.
      statements: attribute -> sentences with {person} and, later in them, {value}.
      unseen_words: words that nothing else uses, to test sounds that were never trained on.
    """

    people: tuple[str, ...]
    attributes: dict[str, tuple[str, ...]]
    questions: dict[str, str]
    answer_lead: str
    statements: dict[str, tuple[str, ...]]
    unseen_words: tuple[str, ...]

    def wordings(self, attribute: str) -> tuple[str, ...]:
        """Returns the sentences that tell the attribute; wording 0 is the question and answer."""
        asked = f"{self.questions[attribute]} {self.answer_lead} {{value}}"
        return (asked, *self.statements[attribute])

    @cached_property
    def entities(self) -> tuple[str, ...]:
        """People and values, sorted: the words that carry a fact."""
        values = (value for values in self.attributes.values() for value in values)
        return tuple(sorted({*self.people, *values}))

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Every word of the world, sorted; without the unseen words."""
        told = {
            word
            for attribute in self.attributes
            for wording in self.wordings(attribute)
            for word in wording.split()
            if not word.startswith("{")
        }
        return tuple(sorted(told | set(self.entities)))


def load_tables(path: str | Path | None = None) -> Tables:
    """Reads a world file (JSON, laid out as the shipped `world.json`); None reads the shipped one.

    Raises:
      UserError: a field is missing or breaks a rule of `Tables`; the message names it.
    """
    path = SHIPPED if path is None else Path(path)
    data = artifacts.read_json(path)
    if not isinstance(data, dict):
        raise UserError(
            f"{path}: is not a JSON object; lay it out as speechlm_jax/world/world.json"
        )
    try:
        tables = configs.from_json(Tables, data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    fault = _fault(tables)
    if fault:
        raise UserError(f"{path}: {fault}")
    return tables


def to_json(tables: Tables) -> dict[str, Any]:
    """Returns plain data that `load_tables` reads back from a file."""
    data = configs.to_json(tables)
    del data["class"]
    return data


def _fault(tables: Tables) -> str | None:
    """Returns the first rule that the tables break, or None."""
    if len(tables.people) < MIN_PEOPLE:
        return f"people: give at least {MIN_PEOPLE}"
    if not tables.attributes:
        return "attributes: give at least one, with its values"
    for name, values in tables.attributes.items():
        if len(values) < MIN_VALUES:
            return f"attributes.{name}: give at least {MIN_VALUES} values"
        if len(tables.statements.get(name, ())) < MIN_STATEMENTS:
            return f"statements.{name}: give at least {MIN_STATEMENTS} sentences"
        if name not in tables.questions:
            return f"questions.{name}: is missing"
    for field in ("questions", "statements"):
        for name in getattr(tables, field):
            if name not in tables.attributes:
                return f"{field}.{name}: there is no such attribute"
    return _word_fault(tables) or _sentence_fault(tables)


def _word_fault(tables: Tables) -> str | None:
    named = {"people": tables.people, "unseen_words": tables.unseen_words}
    named |= {f"attributes.{name}": values for name, values in tables.attributes.items()}
    seen: dict[str, str] = {}
    for field, words in named.items():
        for word in words:
            if not re.fullmatch("[a-z]+", word):
                return f"{field}: {word!r} is not one word of the letters a-z"
            if word in seen:
                return f"{field}: {word!r} stands in {seen[word]} too; each must be its own word"
            seen[word] = field
    for word in tables.unseen_words:
        if word in tables.words:
            return f"unseen_words: {word!r} stands in a sentence"
    return None


def _sentence_fault(tables: Tables) -> str | None:
    if not _is_text(tables.answer_lead):
        return f"answer_lead: {tables.answer_lead!r} is not words of the letters a-z"
    for name in tables.attributes:
        if _fields(tables.questions[name]) != ["person"]:
            return f"questions.{name}: needs {{person}} once, and words of the letters a-z"
        for number, statement in enumerate(tables.statements[name]):
            if _fields(statement) != ["person", "value"]:
                return (
                    f"statements.{name}[{number}]: needs {{person}} once, then {{value}} once, "
                    "and words of the letters a-z"
                )
        told = {word for wording in tables.wordings(name) for word in wording.split()}
        if clash := told & set(tables.entities):
            return f"statements.{name}: {sorted(clash)[0]!r} is a name or a value; use another word"
        if len(set(tables.wordings(name))) < len(tables.wordings(name)):
            return f"statements.{name}: a sentence stands there twice"
    return None


def _fields(template: str) -> list[str] | None:
    """Returns the {fields} of a template in order; None unless all between them is words of a-z."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        return None
    plain = template
    for part in parts:
        if part[1] is not None:
            plain = plain.replace("{" + part[1] + "}", "x")
    return [part[1] for part in parts if part[1] is not None] if _is_text(plain) else None


def _is_text(text: str) -> bool:
    return re.fullmatch("[a-z]+( [a-z]+)*", text) is not None
