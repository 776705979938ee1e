"""Writes the generated blocks of docs: commands, configs, file formats, the files of each room.

    python docs/make_reference.py

A block stands between `<!-- generated: NAME -->` and `<!-- end -->`; what is around it is written
by hand. NAME is `commands` (from the parsers behind `speechlm COMMAND --help`), `configs` (from the
dataclasses behind `speechlm train CONFIG --show`), `files` (from the first lines of modules) or the
full name of a dataclass, whose fields it lists. The pages are committed, so that they can be read
without building anything; tests/test_docs.py fails while a block differs from the code.
"""

import argparse
import ast
import dataclasses
import html
import importlib
import inspect
import itertools
import json
import os
import re
import textwrap
import typing
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from speechlm_jax import config as configs
from speechlm_jax.cli import fields, options

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "speechlm_jax"
COMMON = "options of every command"
BAR = "&#124;"
BLOCK = re.compile(r"(<!-- generated: ([\w.]+) -->\n).*?(<!-- end -->)", re.S)
EXPERIMENTS = (
    "speechlm_jax.experiment.configs.SpeechTokenizerExperiment",
    "speechlm_jax.experiment.configs.LanguageModelExperiment",
    "speechlm_jax.experiment.configs.SpeechDecoderExperiment",
    "speechlm_jax.lm.bench.BenchConfig",
)


def main() -> None:
    """Brings every page up to date."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        page.write_text(updated(text), encoding="utf-8")


def pages() -> list[Path]:
    """Returns the pages that have generated blocks."""
    return [*sorted((DOCS / "reference").glob("*.md")), DOCS / "architecture.md"]


def updated(page: str) -> str:
    """Returns a page with its generated blocks as the code of today gives them."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{block(found[2])}\n{found[3]}", page)


def block(name: str) -> str:
    """Returns the Markdown of the block that has this name."""
    if name == "commands":
        return "\n".join(command_lines())
    if name == "configs":
        return "\n".join(config_lines())
    if name == "files":
        return "\n".join(file_lines())
    return "\n".join(format_table(find_class(name)))


def file_lines() -> Iterator[str]:
    """Yields the files of each room, with the first line of each."""
    folders = [PACKAGE, *sorted(path.parent for path in PACKAGE.rglob("__init__.py"))]
    for folder in dict.fromkeys(folders):
        room = folder.relative_to(PACKAGE.parent).as_posix()
        yield f"\n**{room}/**\n"
        for path in sorted(folder.glob("[!_]*.py")):
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            yield f"- `{path.name}`: {docstring.partition(chr(10))[0]}"


def command_lines() -> Iterator[str]:
    """Yields the list of commands, the options of them all, and a section for each command."""
    parsers = {name: parser_of(name) for name in options.COMMANDS}
    yield from ("| command | what it does |", "| --- | --- |")
    for name, summary in options.COMMANDS.items():
        yield f"| [`speechlm {name}`](#speechlm-{name}) | {markdown(summary)} |"
    yield "\n## Options of every command\n"
    first = parsers["train"]
    yield from argument_table(first, common_actions(first))
    for parser in parsers.values():
        yield from section(parser, heading="##")


def parser_of(name: str) -> argparse.ArgumentParser:
    """Returns the parser of a sub-command, with defaults that no machine's settings change."""
    subparsers = options.Parser(prog="speechlm").add_subparsers()
    with mock.patch.dict(os.environ, XDG_CACHE_HOME="~/.cache"):
        importlib.import_module(f"speechlm_jax.cli.{name}").add_parser(subparsers)
    return subparsers.choices[name]


def section(parser: argparse.ArgumentParser, *, heading: str) -> Iterator[str]:
    """Yields what a command does, its arguments and an example; then the commands below it."""
    yield f"\n{heading} {parser.prog}\n"
    yield from prose(parser.description or "")
    common, own, below = common_actions(parser), [], []
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action not in common]
        for action in actions:
            if isinstance(action, argparse._SubParsersAction):
                below += [*action.choices.values()]
        if group in (parser._positionals, parser._optionals):
            own += actions
    yield from argument_table(parser, own)
    for group in parser._action_groups:
        if group not in (parser._positionals, parser._optionals) and group.title != COMMON:
            yield f"\n{markdown(': '.join(filter(None, (group.title, group.description))))}:\n"
            yield from argument_table(parser, group._group_actions)
    if parser.epilog:
        yield from ("", "```", textwrap.dedent(parser.epilog.partition("\n")[2]), "```")
    for inner in below:
        yield from section(inner, heading=f"{heading}#")


def prose(text: str) -> Iterator[str]:
    """Yields a description as paragraphs; lines that are indented stay lines of their own."""
    for indented, lines in itertools.groupby(text.splitlines(), lambda line: line[:1] == " "):
        block = "\n".join(lines)
        if indented:
            yield f"```\n{textwrap.dedent(block)}\n```\n"
        else:
            yield from (f"{markdown(' '.join(part.split()))}\n" for part in block.split("\n\n"))


def common_actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Returns the options of a parser that every command has, `--help` apart."""
    groups = (group for group in parser._action_groups if group.title == COMMON)
    return [action for group in groups for action in group._group_actions]


def argument_table(
    parser: argparse.ArgumentParser, actions: Iterable[argparse.Action]
) -> Iterator[str]:
    """Yields a table of arguments and their meaning."""
    yield from ("| argument | meaning |", "| --- | --- |")
    for action in actions:
        if not isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
            meaning = (action.help or "") % {**vars(action), "prog": parser.prog}
            yield f"| {code(spelling(action))} | {markdown(meaning)} |"


def spelling(action: argparse.Action) -> str:
    """Returns how an argument is written on the command line, e.g. `--out DIR`."""
    value = "" if action.nargs == 0 else action.metavar or ""
    if not value and action.choices:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    words = [", ".join(action.option_strings), str(value)]
    return " ".join(filter(None, words)) + (" ..." if action.nargs in ("*", "+") else "")


def config_lines() -> Iterator[str]:
    """Yields a section for each experiment, and for each dataclass that is a part of one."""
    classes: dict[type, list[str]] = {}
    for name in EXPERIMENTS:
        collect(find_class(name), "", classes)
    for cls, places in classes.items():
        yield f"## {cls.__name__}\n"
        yield f"{markdown(summary(cls))}\n"
        if places := [place for place in places if place]:
            yield f"Where: {', '.join(f'`{place}`' for place in places)}.\n"
        yield from config_table(cls, known=[*classes])
        yield ""


def collect(cls: type, place: str, classes: dict[type, list[str]]) -> None:
    """Adds a dataclass and those inside it to `classes`, each with the places where it stands."""
    places = classes.setdefault(cls, [])
    if place not in places:
        places.append(place)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        for part in parts(hints[field.name]):
            collect(part, f"{place}.{field.name}".lstrip("."), classes)


def parts(hint: Any) -> Iterator[type]:
    """Yields the dataclasses that an annotation names."""
    if inspect.isclass(hint) and dataclasses.is_dataclass(hint):
        yield hint
    for argument in typing.get_args(hint):
        yield from parts(argument)


def config_table(cls: type, known: Collection[type]) -> Iterator[str]:
    """Yields the table of a config's fields; types that are in `known` link to their section."""
    meanings, hints = fields.meanings(cls), typing.get_type_hints(cls)
    yield from ("| field | type | default | meaning |", "| --- | --- | --- | --- |")
    for field in dataclasses.fields(cls):
        kind = markdown(fields.in_words(hints[field.name]))
        for part in {*parts(hints[field.name])} & {*known}:
            link = f"[{part.__name__}](#{part.__name__.lower()})"
            kind = re.sub(rf"\b{part.__name__}\b", link, kind)
        meaning = markdown(meanings.get(field.name, ""))
        yield f"| `{field.name}` | {kind} | {default(field)} | {meaning} |"


def format_table(cls: type) -> Iterator[str]:
    """Yields the table of the fields that a file holds."""
    meanings, hints = fields.meanings(cls), typing.get_type_hints(cls)
    yield from ("| field | type | meaning |", "| --- | --- | --- |")
    for field in dataclasses.fields(cls):
        kind, meaning = fields.in_words(hints[field.name]), meanings.get(field.name, "")
        yield f"| `{field.name}` | {markdown(kind)} | {markdown(meaning)} |"


def default(field: dataclasses.Field) -> str:
    """Returns the default of a field as an override writes it; a dataclass has its own table."""
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "required"
    if dataclasses.is_dataclass(value):
        return "its defaults"
    return f"`{json.dumps(configs.to_json({'value': value})['value'], ensure_ascii=False)}`"


def summary(cls: type) -> str:
    """Returns what a docstring says before its list of fields."""
    text = re.split(r"\n\n?(?:Attributes|Raises):", inspect.getdoc(cls) or "")[0]
    return " ".join(text.split())


def find_class(name: str) -> type:
    """Returns the dataclass of this full name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def markdown(text: str) -> str:
    """Returns plain text so that Markdown shows it as it is, also in a table; `code` stays code."""
    pieces = re.split(r"`([^`]*)`", text)
    pieces[1::2] = [code(piece) for piece in pieces[1::2]]
    pieces[::2] = [
        re.sub(r"[*\\[\]]|\b_|_\b", r"\\\g<0>", piece).replace("<", "&lt;").replace("|", BAR)
        for piece in pieces[::2]
    ]
    return "".join(pieces)


def code(text: str) -> str:
    """Returns a span of code; a bar in it would end the cell of a table."""
    return f"<code>{html.escape(text).replace('|', BAR)}</code>" if "|" in text else f"`{text}`"


if __name__ == "__main__":
    main()
