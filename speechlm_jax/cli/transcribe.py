"""`speechlm transcribe`: recordings -> texts."""

import argparse
import dataclasses
import json
from typing import Any

from speechlm_jax.cli import options
from speechlm_jax.cli.later import later
from speechlm_jax.errors import EXIT_OK, UserError
from speechlm_jax.verbs import paths

transcribe = later("speechlm_jax.verbs.transcribe")

DETAILS = """\
A recording of any length is read in windows of 30 s, each alone; the times of a text are those of
its window. The run is a Whisper (`speechlm convert`), or a speech tokenizer, which reads its own
codes. `--format text` prints a line a window, `json` an object a recording, `srt` subtitles."""
EXAMPLE = """\
speechlm transcribe talk.mp3 --run runs/whisper-base
speechlm transcribe talk.mp3 --run runs/whisper-base --language fr --format srt > talk.srt"""


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = options.add_command(
        subparsers, "transcribe", run=run, check=check, details=DETAILS, example=EXAMPLE
    )
    parser.add_argument("audio", metavar="AUDIO", nargs="+", type=options.place, help="a recording")
    parser.set_defaults(more="audio")
    parser.add_argument(
        "--format", choices=("text", "json", "srt"), default="text",
        help="what is printed (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--language", metavar="XX",
        help="language that a multilingual Whisper writes (default: English)",
    )  # fmt: skip
    parser.add_argument(
        "--beams", metavar="N", type=options.whole(1, 64), default=1,
        help="texts that are followed at a time (default: %(default)s, greedy)",
    )  # fmt: skip
    options.add_run(parser)


def check(args: argparse.Namespace) -> None:
    """Raises UserError if a recording or the run does not exist."""
    if args.format == "srt" and len(args.audio) > 1:
        raise UserError("--format srt: takes one recording; run it for each")
    for path in args.audio:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; give recordings")
    paths.check_places(args.audio)
    paths.check_bundle(args.run_folder, "tokenizer")


def run(args: argparse.Namespace) -> int:
    """Prints the texts."""
    found = transcribe.transcribe(
        args.audio, run=args.run_folder, beams=args.beams, language=args.language
    )
    for path, windows in found.items():
        if args.format == "json":
            made = {"audio": str(path), "windows": [dataclasses.asdict(one) for one in windows]}
            print(json.dumps(made, ensure_ascii=False))
        elif args.format == "srt":
            print(transcribe.to_srt(windows), end="")
        else:
            print("\n".join(window.text for window in windows))
    return EXIT_OK
