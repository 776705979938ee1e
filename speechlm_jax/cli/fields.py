"""A config's fields as readable text: dotted name, value, type in words, and meaning.

The meaning of a field is its entry under "Attributes:" in the docstring of its dataclass.
"""

import dataclasses
import inspect
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

from speechlm_jax import config as configs

WIDTH = 100
_WORDS = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    typing.Any: "anything",
}


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a config, or of a dataclass inside it.

    Attributes:
      name: dotted name, as in overrides.
      value: its value.
      kind: its type in words.
      meaning: its text in the docstring; "" if it has none.
    """

    name: str
    value: Any
    kind: str
    meaning: str

    def __str__(self) -> str:
        """Returns an assignment that `speechlm train` takes, and its meaning below."""
        value = json.dumps(configs.to_json({"value": self.value})["value"], ensure_ascii=False)
        said = f"{self.meaning or 'see its class'} ({self.kind})"
        indent = " " * 4
        return f"{self.name}={value}\n" + textwrap.fill(
            said, WIDTH, initial_indent=indent, subsequent_indent=indent
        )


def config_to_fields(config: Any, prefix: str = "") -> Iterator[Field]:
    """Yields all fields of a config in order; a dataclass in a field is replaced by its fields."""
    said, hints = meanings(type(config)), typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from config_to_fields(value, f"{name}.")
        else:
            yield Field(name, value, in_words(hints[field.name]), said.get(field.name, ""))


def meanings(cls: type) -> dict[str, str]:
    """Returns the meaning of each field in a dataclass's docstring; `a, b: ...` is that of both."""
    said: dict[str, list[str]] = {}
    names: list[str] = []
    for line in (inspect.getdoc(cls) or "").partition("Attributes:")[2].splitlines():
        if found := re.fullmatch(r"  (\w+(?:, \w+)*): (.*)", line):
            names = found[1].split(", ")
            said |= {name: [found[2]] for name in names}
        elif line.startswith("    "):
            for name in names:
                said[name].append(line.strip())
    return {name: " ".join(lines) for name, lines in said.items()}


def in_words(hint: Any) -> str:
    """Returns an annotated type in words."""
    arguments, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(in_words, arguments))
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        items = list(dict.fromkeys(in_words(item) for item in arguments if item is not Ellipsis))
        number = "" if Ellipsis in arguments else f"{len(arguments)} of "
        return f"list of {number}{' or '.join(items)}"
    if origin is dict:
        return f"{in_words(arguments[1])} by name"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))
