"""`speechlm speak`: speech codes or text -> audio."""

import argparse
from pathlib import Path
from typing import Any

from speechlm_jax.cli import options
from speechlm_jax.cli.later import later
from speechlm_jax.verbs import paths

speak = later("speechlm_jax.verbs.speak")

DETAILS = """\
Codes are numbers in one argument, or a codes.jsonl file; anything else is text, which the
text-to-token model turns into codes first."""
EXAMPLE = """\
speechlm speak "what is the city of anna" --out anna.wav
speechlm speak "17 301 44 44 260"
speechlm speak runs/codes/codes.jsonl --out runs/audio"""


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = options.add_command(
        subparsers, "speak", run=run, check=check, details=DETAILS, example=EXAMPLE
    )
    parser.add_argument("what", metavar="CODES|TEXT", help="codes, a codes.jsonl file, or text")
    parser.add_argument("--voice", metavar="NAME", help="a training voice (default: drawn by seed)")
    options.add_run(parser)
    parser.add_argument(
        "--out",
        metavar="PATH",
        type=options.place,
        default=Path("speech.wav"),
        help="a WAV file, or a folder for a codes.jsonl file (default: %(default)s)",
    )
    options.add_seed(parser)


def check(args: argparse.Namespace) -> None:
    """Raises UserError if a codes file or the run does not exist, or `--out` names no audio."""
    paths.check_speech(args.what, args.out)
    paths.check_bundle(args.run_folder, "speech_decoder")


def run(args: argparse.Namespace) -> int:
    """Writes audio, and prints its path and its length in seconds."""
    return options.show(
        speak.speak(args.what, run=args.run_folder, out=args.out, voice=args.voice, seed=args.seed)
    )
