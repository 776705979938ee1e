"""`speechlm tokenize`: recordings to speech codes."""

import argparse
from pathlib import Path
from typing import Any

from speechlm_jax.cli import options
from speechlm_jax.folder_lock import FolderLock
from speechlm_jax.verbs import tokenize

DETAILS = """\
Any rate, mono or stereo; wav, flac, ogg, mp3. A folder with manifest.jsonl is read whole. A
recording that cannot be used is set aside and listed; the others are tokenised."""
EXAMPLE = """\
speechlm tokenize question.wav
speechlm tokenize my_recordings/ --run runs/quickstart --out runs/my_codes"""


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = options.add_command(subparsers, "tokenize", run=run, details=DETAILS, example=EXAMPLE)
    parser.add_argument("audio", metavar="AUDIO", nargs="+", help="a recording, or a clip folder")
    parser.set_defaults(more="audio")
    options.add_run(parser)
    options.add_out(parser, "runs/codes", "codes.jsonl and its manifest")


def run(args: argparse.Namespace) -> int:
    """Writes codes.jsonl and prints what it holds."""
    audio = [Path(name) for name in args.audio]
    with FolderLock(args.out):
        return options.show(tokenize.tokenize(audio, run=args.run_folder, out=args.out))
