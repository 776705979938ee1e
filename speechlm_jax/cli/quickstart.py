"""`speechlm quickstart`: the whole chain from one command."""

import argparse
from typing import Any

from speechlm_jax.cli import options
from speechlm_jax.cli.later import later
from speechlm_jax.quickstart import given
from speechlm_jax.quickstart.folders import Folders

steps = later("speechlm_jax.quickstart.steps")

DETAILS = """\
Each step is skipped when its output is already there; stop it at any time and run the same command
again. Without --speech and --text it makes its own world, and its audio with eSpeak NG. With them
it holds out a tenth of your recordings (whole speakers if there are five) and claims nothing."""
EXAMPLE = """\
speechlm quickstart
speechlm quickstart --size micro --out runs/micro
speechlm quickstart --speech my_recordings --text my_text.txt --out runs/mine"""


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = options.add_command(
        subparsers, "quickstart", run=run, check=check, details=DETAILS, example=EXAMPLE
    )
    parser.add_argument(
        "--size",
        choices=("full", "micro"),
        default="full",
        help="full: the real thing; micro: every step in two minutes, no claims (default: full)",
    )
    parser.add_argument(
        "--world", metavar="FILE", type=options.place, help="tables to make the world from"
    )
    parser.add_argument(
        "--speech",
        metavar="DIR",
        type=options.place,
        help="your recordings: a folder with manifest.jsonl (audio, text, speaker)",
    )
    parser.add_argument(
        "--text",
        metavar="FILE",
        type=options.place,
        help='your text, UTF-8: .txt or .jsonl (rows with "text"), or either gzipped',
    )
    options.add_audio_anywhere(parser)
    options.add_out(parser, str(options.DEFAULT_RUN), "everything that is made")
    options.add_seed(parser)


def check(args: argparse.Namespace) -> None:
    """Raises UserError if tables, recordings or text do not exist, or the folder is in use."""
    given.check(Folders(args.out), world=args.world, speech=args.speech, text=args.text)


def run(args: argparse.Namespace) -> int:
    """Runs the steps and prints the path of the report."""
    return options.show(
        steps.quickstart(
            args.out,
            size=args.size,
            world=args.world,
            speech=args.speech,
            text=args.text,
            audio_anywhere=args.audio_anywhere,
            seed=args.seed,
        )
    )
