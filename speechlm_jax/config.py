"""Configs: frozen dataclasses <-> JSON, dotted overrides, fingerprints, files loaded by path."""

import dataclasses
import difflib
import hashlib
import json
import runpy
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from speechlm_jax.errors import UserError

T = TypeVar("T")


def load(path: str | Path) -> Any:
    """Runs a Python config file and returns what its `config()` function returns.

    Raises:
      UserError: the file is missing, or defines no `config()` that gives a dataclass.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such config file; see configs/ for those that ship")
    made = runpy.run_path(str(path)).get("config")
    if made is None:
        raise UserError(f"{path}: defines no function `config()`; see configs/ for examples")
    config = made()
    if not dataclasses.is_dataclass(config):
        raise UserError(f"{path}: config() returned {type(config).__name__}, not a dataclass")
    return config


def to_json(config: Any) -> dict[str, Any]:
    """Turns a config into plain JSON data; a nested dataclass of a union keeps its class name."""
    return json.loads(json.dumps(_plain(config)))


def from_json(cls: type[T], data: dict[str, Any]) -> T:
    """The inverse of `to_json`; fields that have moved are read where they were (`MOVED`).

    Raises:
      UserError: a field is unknown, missing or of the wrong type.
    """
    return _typed(cls, data, cls.__name__)


def fingerprint(data: Any) -> str:
    """Sixteen hex digits that name a config or any JSON data: the SHA-256 of its canonical JSON."""
    plain = _plain(data)
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def override(config: T, assignments: Iterable[str]) -> T:
    """Applies `field.sub=value` assignments; values are JSON, bare words are strings.

    Raises:
      UserError: an unknown field (the nearest one is named) or a value of the wrong type.
    """
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise UserError(f"'{assignment}': an override is written field=value")
        config = _replace(config, path.strip().split("."), text.strip(), path.strip())
    return config


def _replace(config: Any, names: list[str], text: str, path: str) -> Any:
    hints = _field_types(type(config), path)
    name = names[0]
    if name not in hints:
        moved = _moved_to(type(config)).get(name)
        if moved is not None:
            outer = path.removesuffix(".".join(names))
            raise UserError(f"{path}: is now {outer}{'.'.join([moved, *names[1:]])}")
        raise UserError(f"{path}: {_unknown(name, hints)}")
    if len(names) > 1:
        child = getattr(config, name)
        if not dataclasses.is_dataclass(child):
            raise UserError(f"{path}: '{name}' is a value, it has no field '{names[1]}'")
        value = _replace(child, names[1:], text, path)
    else:
        value = _typed(hints[name], _parse(text), path)
    return dataclasses.replace(config, **{name: value})


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"None": None, "True": True, "False": False}.get(text, text)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def _field_types(cls: type, path: str) -> dict[str, Any]:
    if not dataclasses.is_dataclass(cls):
        raise UserError(f"{path}: {cls.__name__} has no fields")
    return {f.name: typing.get_type_hints(cls)[f.name] for f in dataclasses.fields(cls)}


def _unknown(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return (
        f"unknown field '{name}'; did you mean '{near[0]}'?" if near else f"unknown field '{name}'"
    )


def _typed(hint: Any, value: Any, path: str) -> Any:
    """Converts JSON data to the annotated type, or raises a UserError that names `path`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _typed_union(arguments, value, path)
    if origin is typing.Literal:
        if value not in arguments:
            raise UserError(f"{path}: {value!r} is not one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        if len(arguments) != len(value):
            raise UserError(f"{path}: takes {len(arguments)} values, not {len(value)}")
        return tuple(_typed(t, v, path) for t, v in zip(arguments, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {key: _typed(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _typed_dataclass(hint, value, path)
    if hint is float and type(value) is int:
        return float(value)
    if (
        isinstance(hint, type)
        and isinstance(value, hint)
        and (hint is bool or type(value) is not bool)
    ):
        return value
    if hint is Path and isinstance(value, str):
        return Path(value)
    raise UserError(f"{path}: {value!r} is not of type {getattr(hint, '__name__', hint)}")


def _typed_union(choices: tuple[Any, ...], value: Any, path: str) -> Any:
    named = value.get("class") if isinstance(value, dict) else None
    for choice in choices:
        if named is not None and getattr(choice, "__name__", None) != named:
            continue
        if choice is type(None):
            if value is None:
                return None
            continue
        try:
            return _typed(choice, value, path)
        except UserError:
            if named is not None:
                raise
    names = " or ".join(getattr(choice, "__name__", str(choice)) for choice in choices)
    raise UserError(f"{path}: {value!r} is not of type {names}")


def _moved_to(cls: type) -> dict[str, str]:
    """Fields that a class had, and the dotted field that each of them is now."""
    return getattr(cls, "MOVED", {})


def _moved(cls: type, data: dict[str, Any]) -> dict[str, Any]:
    """A config's JSON data with moved fields where they are now."""
    moves = _moved_to(cls)
    made = {key: value for key, value in data.items() if key not in moves}
    for old in moves.keys() & data.keys():
        outer, name = moves[old].rsplit(".", 1)
        made[outer] = {**made.get(outer, {}), name: data[old]}
    return made


def _typed_dataclass(cls: type, data: dict[str, Any], path: str) -> Any:
    hints = _field_types(cls, path)
    given = {key: value for key, value in _moved(cls, data).items() if key != "class"}
    for name in given:
        if name not in hints:
            raise UserError(f"{path}: {_unknown(name, hints)}")
    values = {name: _typed(hints[name], value, f"{path}.{name}") for name, value in given.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise UserError(f"{path}: {error}") from error
