"""`speechlm tokenize`: recordings -> speech codes."""

import argparse
from typing import Any

from speechlm_jax.cli import options
from speechlm_jax.cli.later import later
from speechlm_jax.folder_lock import FolderLock
from speechlm_jax.verbs import paths

tokenize = later("speechlm_jax.verbs.tokenize")

DETAILS = """\
Any rate and number of channels; wav, flac, ogg, mp3. Text and speaker come from a manifest.jsonl in
the folder or beside the files (a row a clip: audio, text, speaker), else the text of clip.flac from
clip.txt; without one a recording is speech alone. A folder without a manifest gives all recordings
in it. A recording that cannot be used is set aside and listed; the others are tokenised."""
EXAMPLE = """\
speechlm tokenize question.wav
speechlm tokenize my_recordings/*.flac --run runs/my_tokenizer --out codes
speechlm tokenize my_recordings/ --run runs/my_tokenizer --out runs/my_codes"""


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = options.add_command(
        subparsers, "tokenize", run=run, check=check, details=DETAILS, example=EXAMPLE
    )
    parser.add_argument(
        "audio", metavar="AUDIO", nargs="+", type=options.place, help="a recording, or a folder"
    )
    parser.set_defaults(more="audio")
    options.add_run(parser)
    options.add_audio_anywhere(parser)
    options.add_out(parser, "runs/codes", "codes.jsonl and its manifest")


def check(args: argparse.Namespace) -> None:
    """Raises UserError if a recording or the run does not exist, or `--out` is a file."""
    paths.check_places(args.audio)
    paths.check_out_folder(args.out)
    paths.check_bundle(args.run_folder, "tokenizer")


def run(args: argparse.Namespace) -> int:
    """Writes codes.jsonl and prints a summary."""
    with FolderLock(args.out):
        return options.show(
            tokenize.tokenize(
                args.audio, run=args.run_folder, out=args.out, audio_anywhere=args.audio_anywhere
            )
        )
