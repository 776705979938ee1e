"""Names of the sub-commands, and the options that they share."""

import argparse
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from speechlm_jax import config as configs
from speechlm_jax.errors import EXIT_OK, UserError
from speechlm_jax.shipped import RUN_VARIABLE

_TABLE = json.loads((Path(__file__).parent / "commands.json").read_text(encoding="utf-8"))
COMMANDS: dict[str, str] = _TABLE["commands"]  # name -> summary, in the order of a whole run
DEFAULT_RUN = Path(_TABLE["default_run"])
MOST = 10**18 - 1
CONFIG = "a config file, which is run: only one that you trust"


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UserError with a message of one line."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError; argparse's own method prints the usage and ends the process."""
        raise UserError(f"{message}; see `{self.prog} --help`")


def place(text: str) -> Path:
    """Parses a path for argparse: expands `~` and rejects an empty text."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; give a path")
    return Path(os.path.expanduser(text))


def whole(least: int, most: int = MOST) -> Callable[[str], int]:
    """Returns a parser for argparse of whole numbers from `least` to `most`."""

    def read(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,18}", text) or not least <= int(text) <= most:
            limits = f"from {least} to {most}" if most < MOST else f"of {least} or more"
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number {limits}")
        return int(text)

    return read


def real(least: float, most: float, *, open_at_least: bool = False) -> Callable[[str], float]:
    """Returns a parser for argparse of numbers from `least` to `most`.

    If `open_at_least` is true, `least` itself is rejected.
    """

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most or (open_at_least and value == least):
            limits = f"{'above' if open_at_least else 'from'} {least:g} to {most:.10g}"
            raise argparse.ArgumentTypeError(f"{text!r} is no number {limits}")
        return value

    return read


positive = whole(1)


def nothing_to_check(args: argparse.Namespace) -> None:
    """Checks nothing, for a command whose arguments name no files or folders."""


def add_command(
    subparsers: Any,
    name: str,
    *,
    run: Callable[[argparse.Namespace], int],
    check: Callable[[argparse.Namespace], None] = nothing_to_check,
    details: str,
    example: str,
) -> argparse.ArgumentParser:
    """Adds a sub-command with the options of every command; its help ends with the example.

    `check` raises the errors of the arguments before `run` imports large libraries and before a
    user's module is imported.
    """
    parser = subparsers.add_parser(
        name,
        help=COMMANDS[name],
        description=f"{COMMANDS[name][0].upper()}{COMMANDS[name][1:]}.\n\n{details}",
        epilog="example:\n" + "\n".join(f"  {line}" for line in example.splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run, check=check)
    common = parser.add_argument_group("options of every command")
    common.add_argument(
        "--module",
        metavar="NAME",
        action="append",
        default=[],
        help="run your own registrations first, e.g. my_lab.tasks or tasks.py (repeatable); this "
        "runs its code: only files that you trust",
    )
    loudness = common.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true", help="log warnings and errors only")
    loudness.add_argument("--verbose", action="store_true", help="log details")
    common.add_argument("--log-json", action="store_true", help="log one JSON object a line")
    return parser


def add_vocab(parser: argparse.ArgumentParser) -> None:
    """Adds --vocab: number of ids of a model, for a step without data."""
    parser.add_argument(
        "--vocab", metavar="N", type=positive, default=168_960,
        help="ids, where the config leaves them to its rows (default: GLM-4-Voice's %(default)s)",
    )  # fmt: skip


def add_run(parser: argparse.ArgumentParser) -> None:
    """Adds --run: the run or bundle whose models a command uses."""
    parser.add_argument(
        "--run",
        dest="run_folder",  # `run` is the sub-command's function
        metavar="DIR",
        type=place,
        default=Path(os.environ.get(RUN_VARIABLE) or DEFAULT_RUN),
        help="the run, or bundle, whose models are used (see `speechlm bundle`; default: "
        f"${RUN_VARIABLE}, or {DEFAULT_RUN})",
    )


def add_tensor(parser: argparse.ArgumentParser) -> None:
    """Adds --tensor: how a command splits its language model over several devices."""
    parser.add_argument(
        "--tensor", metavar="N", type=positive, default=1,
        help="devices that share each request, for a model larger than one of them; requests are "
        "split over all (default: %(default)s)",
    )  # fmt: skip


def add_out(parser: argparse.ArgumentParser, default: str, what: str) -> None:
    """Adds --out: the folder into which a command writes."""
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=place,
        default=Path(default),
        help=f"folder for {what} (default: %(default)s)",
    )


def add_audio_anywhere(parser: argparse.ArgumentParser) -> None:
    """Adds --audio-anywhere; without it, a foreign manifest cannot name other files of the user."""
    parser.add_argument(
        "--audio-anywhere",
        action="store_true",
        help="allow recordings outside of their folder: absolute paths, .., links",
    )


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Adds --seed: the seed of everything random in a command."""
    parser.add_argument(
        "--seed",
        metavar="N",
        type=whole(0, 2**32 - 1),
        default=0,
        help="seed of everything random (default: 0)",
    )


def show(result: Any) -> int:
    """Prints a verb's result (a dataclass or JSON data) as one JSON object on standard output."""
    data = configs.to_json(result)
    try:
        print(json.dumps(data, ensure_ascii=False))
    except UnicodeEncodeError:  # the terminal is not UTF-8, or the text has half a character
        print(json.dumps(data))
    return EXIT_OK
