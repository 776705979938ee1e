"""Configs: frozen dataclasses <-> JSON, dotted overrides, fingerprints, files loaded by path."""

import dataclasses
import hashlib
import inspect
import json
import runpy
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from speechlm_jax import typed
from speechlm_jax.errors import UserError
from speechlm_jax.user_code import user_code

T = TypeVar("T")

MOST = 2**31 - 1  # upper limit of a size: arrays are indexed by 32 bits
_ABSENT = object()
_MOST_NAMED = 6  # differences named in a line
added = typed.added


def load(path: str | Path) -> Any:
    """Runs a Python config file and returns the result of its `config()` function.

    Raises:
      UserError: the file is missing, fails, or defines no `config()` that returns a dataclass.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such config file; see configs/ for those that ship")
    with user_code(str(path)):
        made = runpy.run_path(str(path)).get("config")
    if not callable(made):
        raise UserError(f"{path}: defines no function `config()`; see configs/ for examples")
    with user_code(str(path)):
        config = made(*_no_arguments(made))
    if not dataclasses.is_dataclass(config):
        raise UserError(f"{path}: config() returned {type(config).__name__}, not a dataclass")
    return config


def at_least(config: Any, least: float | int, *names: str, most: float | int = MOST) -> None:
    """Refuses numbers of a config that are not within `least` .. `most`; None passes.

    Raises:
      UserError: a number is refused; the message names the field and its limits.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not least <= value <= most:
            limits = f"to {most:.10g}" if most != MOST or value > most else "or more"
            raise UserError(f"{name}: {typed.short(value)}; give {least:.10g} {limits}")


def above_0(config: Any, *names: str, most: float | int = MOST) -> None:
    """Refuses numbers of a config that are not above 0 and at most `most`, as `at_least`."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value <= most:
            limits = f", up to {most:.10g}" if most != MOST or value > most else ""
            raise UserError(f"{name}: {typed.short(value)}; give more than 0{limits}")


def to_json(config: Any, *, whole: bool = True) -> dict[str, Any]:
    """Turns a config into plain JSON data; a nested dataclass keeps its class name.

    Without `whole`, `added` fields are left out if they have the value that data without them
    means.
    """
    return json.loads(json.dumps(typed.to_plain(config, whole=whole)))


def from_json(cls: type[T], data: Any) -> T:
    """Reads a config from the output of `to_json`; finds moved fields at their old names (`MOVED`).

    Raises:
      UserError: a field is unknown, missing, of the wrong type or out of its range.
    """
    return typed.typed(cls, data, cls.__name__)


def upgraded(stored: Any, config: Any) -> Any:
    """Returns stored JSON data as this version would have written it, to compare with `to_json`.

    Moved fields are put where they are now; fields that the data lacks get the value that data
    without them means (`added`, or the default). All other differences from `config` stay.
    """
    if dataclasses.is_dataclass(config) and isinstance(stored, dict):
        name = type(config).__name__
        if stored.get("class", name) != name:
            return stored
        made = {"class": name, **typed.moved(type(config), stored)}
        for field in dataclasses.fields(config):
            if field.name in made:
                made[field.name] = upgraded(made[field.name], getattr(config, field.name))
            elif (meant := typed.before(field)) is not dataclasses.MISSING:
                made[field.name] = typed.to_plain(meant)
        return made
    if isinstance(config, dict) and isinstance(stored, dict):
        mine = {str(key): item for key, item in config.items()}
        return {key: upgraded(item, mine.get(key)) for key, item in stored.items()}
    if isinstance(config, (list, tuple)) and isinstance(stored, list):
        if len(config) == len(stored):
            return [upgraded(*pair) for pair in zip(stored, config, strict=True)]
    return stored


def as_started(config: T, stored: Any) -> T:
    """Returns a config that continues from stored JSON data: newer defaults give way.

    A field that was `added` and is at its default takes the value that it meant before, if the data
    has that: a run, or a finished folder, stays the same when a default changes.
    """
    if not isinstance(stored, dict):
        return config
    data, kept = typed.moved(type(config), stored), {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        mine, old = getattr(config, field.name), typed.before(field)
        if dataclasses.is_dataclass(mine):
            kept[field.name] = as_started(mine, data.get(field.name))
        elif typed.is_added(field) and mine == field.default:
            kept[field.name] = old if data.get(field.name, old) == old else mine
    return dataclasses.replace(config, **kept)  # type: ignore[type-var]


def differences(theirs: Any, mine: Any, path: str = "") -> Iterator[str]:
    """Yields each field in which two sets of JSON data differ, with both values."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        for key in sorted(theirs.keys() | mine.keys()):
            where = f"{path}.{key}" if path else key
            yield from differences(theirs.get(key, _ABSENT), mine.get(key, _ABSENT), where)
    elif isinstance(theirs, list) and isinstance(mine, list) and len(theirs) == len(mine):
        for number, pair in enumerate(zip(theirs, mine, strict=True)):
            yield from differences(*pair, f"{path}[{number}]")
    elif theirs is _ABSENT:
        yield f"no {path}, this run has {typed.short(mine)}"
    elif mine is _ABSENT:
        yield f"{path}={typed.short(theirs)}, this run has none"
    elif theirs != mine:
        yield f"{path or 'config'}={typed.short(theirs)}, this run has {typed.short(mine)}"


def listed(found: Iterable[str]) -> str:
    """Joins differences into a part of one line: some, and the number of the others."""
    every = list(found)
    more = f"; and {len(every) - _MOST_NAMED} more" if len(every) > _MOST_NAMED else ""
    return "; ".join(every[:_MOST_NAMED]) + more


def fingerprint(data: Any) -> str:
    """Returns 16 hex digits that identify a config or JSON data: SHA-256 of its canonical JSON.

    Of a dataclass, `added` fields count only if they differ from what data without them means.
    """
    plain = typed.to_plain(data, whole=False)
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def override(config: T, assignments: Iterable[str]) -> T:
    """Applies `field.sub=value` assignments, all at once; values are JSON, bare words are strings.

    Raises:
      UserError: a field is unknown (the nearest is named), a value has the wrong type, or a field
        has two values.
    """
    given: dict[str, Any] = {}
    for assignment in assignments:
        path, separator, text = (part.strip() for part in assignment.partition("="))
        if not separator or not all(path.split(".")):
            raise UserError(f"{typed.short(assignment)}: an override is written field=value")
        _assign(given, path, text)
    return _replaced(config, given, "") if given else config


def _assign(given: dict[str, Any], path: str, text: str) -> None:
    """Adds one assignment to a tree of field names whose leaves are texts."""
    *outer, name = path.split(".")
    for part in outer:
        given = given.setdefault(part, {})
        if not isinstance(given, dict):
            raise UserError(f"{path}: '{part}' is also given as a whole; give one of them")
    before = given.setdefault(name, text)
    if before != text:
        raise UserError(f"{path}: is given twice, and differently; give it once")


def _replaced(config: Any, given: dict[str, Any], path: str) -> Any:
    """Returns a dataclass with the fields of a tree of assignments replaced."""
    hints, made = typed.field_types(type(config)), {}
    for name, value in given.items():
        where = f"{path}.{name}" if path else name
        if name not in hints:
            raise UserError(f"{where}: {_absent(config, name, path)}")
        if isinstance(value, str):
            made[name] = typed.typed(hints[name], _parse(value, where), where)
        elif dataclasses.is_dataclass(child := getattr(config, name)):
            made[name] = _replaced(child, value, where)
        else:
            part = next(iter(value))
            raise UserError(
                f"{where}.{part}: '{name}' is {typed.short(child)}, it has no field '{part}'; "
                f"give {where} as a whole"
            )
    return typed.built(lambda: dataclasses.replace(config, **made), path)


def _absent(config: Any, name: str, path: str) -> str:
    """Returns the message for a field that a config lacks: where it is now, or the nearest one."""
    now = typed.moves(type(config)).get(name)
    if now is None:
        return typed.unknown(name, typed.field_types(type(config)))
    return f"is now {path}.{now}" if path else f"is now {now}"


def _parse(text: str, path: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply") from None
    except ValueError:  # no JSON, or an integer of thousands of digits
        return {"None": None, "True": True, "False": False}.get(text, text)


def _no_arguments(function: Callable[..., Any]) -> tuple[()]:
    """Returns no arguments, for `config()`; UserError names its line if it needs any."""
    try:
        inspect.signature(function).bind()
    except ValueError:  # a built-in class may have no signature
        pass
    except TypeError:
        code = getattr(function, "__code__", None)
        place = f" ({Path(code.co_filename).name}:{code.co_firstlineno})" if code else ""
        raise UserError(f"config() takes arguments; give them defaults{place}") from None
    return ()
