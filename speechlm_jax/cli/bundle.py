"""`speechlm bundle`: trained models that belong together."""

import argparse
from typing import Any

from speechlm_jax.bundle.contents import PART_NAMES, TITLES, check_bundle
from speechlm_jax.cli import options
from speechlm_jax.cli.later import later
from speechlm_jax.errors import UserError
from speechlm_jax.verbs import paths

bundle = later("speechlm_jax.verbs.bundle")

ACTIONS = ("show", "make", "upgrade")
DETAILS = """\
A bundle is what --run of every command takes: a speech tokenizer, a text-to-token model, language
models, a speech decoder, and their vocabularies. A training's folder is one of a single part.
  show     prints what DIR holds
  make     joins trainings by DIR/bundle.json; they stay where they are, in or beside DIR
  upgrade  writes DIR/bundle.json of a run that an earlier version made, or that was trained on"""
EXAMPLE = """\
speechlm bundle show runs/mine
speechlm bundle make runs/mine --tokenizer runs/tok --text-to-token runs/tts --lm runs/lm
speechlm bundle upgrade runs/old"""


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = options.add_command(
        subparsers, "bundle", run=run, check=check, details=DETAILS, example=EXAMPLE
    )
    parser.add_argument("action", metavar="show|make|upgrade", choices=ACTIONS)
    parser.add_argument("folder", metavar="DIR", type=options.place, help="folder of the bundle")
    parts = parser.add_argument_group(
        "parts to join", "each the folder of a training, a checkpoint of it, or a bundle"
    )
    for name in PART_NAMES:
        default = " (default: that of --lm)" if name == "chat" else ""
        parts.add_argument(
            _option(name), dest=name, metavar="DIR", type=options.place,
            help=f"the {TITLES[name]}{default}",
        )  # fmt: skip


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _given(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in PART_NAMES if getattr(args, name) is not None}


def check(args: argparse.Namespace) -> None:
    """Raises UserError if a folder does not exist, or parts and action do not fit."""
    given = _given(args)
    if args.action != "make":
        if given:
            raise UserError(f"{_option(next(iter(given)))}: is for `speechlm bundle make` alone")
        paths.check_folder(args.folder, "the folder of a bundle")
        if args.action == "show":
            check_bundle(args.folder)
        return
    paths.check_out_folder(args.folder)
    if not given:
        options_ = ", ".join(map(_option, PART_NAMES))
        raise UserError(f"{args.folder}: no part is given; give at least one of {options_}")
    for place in given.values():
        paths.check_folder(place, "the folder of a training, or a bundle")
        check_bundle(place)


def run(args: argparse.Namespace) -> int:
    """Runs the action and prints the contents of the bundle."""
    return options.show(bundle.bundle(args.action, args.folder, parts=_given(args)))
