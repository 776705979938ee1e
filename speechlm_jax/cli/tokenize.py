"""`speechlm tokenize`: recordings to speech codes."""

import argparse
from pathlib import Path
from typing import Any

from speechlm_jax.cli import options
from speechlm_jax.folder_lock import FolderLock
from speechlm_jax.quickstart.folders import find_run
from speechlm_jax.verbs.recordings import check_places

tokenize = options.Later("speechlm_jax.verbs.tokenize")

DETAILS = """\
Any rate and number of channels; wav, flac, ogg, mp3. Text and speaker come from a manifest.jsonl in
the folder or beside the files (a row a clip: audio, text, speaker), else the text of clip.flac from
clip.txt; without one a recording is speech alone. A folder without a manifest gives all recordings
in it. A recording that cannot be used is set aside and listed; the others are tokenised."""
EXAMPLE = """\
speechlm tokenize question.wav
speechlm tokenize my_recordings/*.flac --run runs/quickstart --out codes
speechlm tokenize my_recordings/ --run runs/quickstart --out runs/my_codes"""


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = options.add_command(subparsers, "tokenize", run=run, details=DETAILS, example=EXAMPLE)
    parser.add_argument("audio", metavar="AUDIO", nargs="+", help="a recording, or a folder")
    parser.set_defaults(more="audio")
    options.add_run(parser)
    options.add_audio_anywhere(parser)
    options.add_out(parser, "runs/codes", "codes.jsonl and its manifest")


def run(args: argparse.Namespace) -> int:
    """Writes codes.jsonl and prints what it holds."""
    audio = [Path(name) for name in args.audio]
    check_places(audio)
    find_run(args.run_folder)
    with FolderLock(args.out):
        return options.show(
            tokenize.tokenize(
                audio, run=args.run_folder, out=args.out, audio_anywhere=args.audio_anywhere
            )
        )
