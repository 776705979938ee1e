"""`speechlm tokenize`: recordings -> speech codes."""

import argparse
import re
from pathlib import Path
from typing import Any

from speechlm_jax import bucket
from speechlm_jax.audio.wav import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE
from speechlm_jax.cli import options
from speechlm_jax.cli.later import later
from speechlm_jax.errors import UserError
from speechlm_jax.verbs import paths

tokenize = later("speechlm_jax.verbs.tokenize")

DETAILS = """\
Any length, rate and number of channels; wav, flac, ogg, mp3. AUDIO is a recording, a folder, a
manifest (*.jsonl), a tar file as of WebDataset, the address of one of them (gs://...), or -, which
reads a wav, FLAC or (with --sample-rate) raw 16-bit stream. Text and speaker come from a
manifest.jsonl in the folder or beside the files (a row a clip: audio, text, speaker), else the text
of clip.flac from clip.txt; without one a recording is speech alone. A folder without a manifest
gives all recordings in it. A recording that cannot be used is set aside and listed; the others are
tokenised. If it is stopped, the same command continues. Parts may run side by side, on several
machines that share the folder; the last one joins them."""
EXAMPLE = """\
speechlm tokenize question.wav
speechlm tokenize my_recordings/*.flac --run runs/my_tokenizer --out codes
speechlm tokenize my_recordings/ --run runs/my_tokenizer --out runs/my_codes
speechlm tokenize corpus/*.tar --run runs/my_tokenizer --out codes --part 3/16 --max-bad 0.01"""


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = options.add_command(
        subparsers, "tokenize", run=run, check=check, details=DETAILS, example=EXAMPLE
    )
    parser.add_argument(
        "audio", metavar="AUDIO", nargs="+", type=_source,
        help="a recording, a folder, a manifest, a tar file, an address, or -",
    )  # fmt: skip
    parser.set_defaults(more="audio")
    options.add_run(parser)
    options.add_audio_anywhere(parser)
    options.add_out(parser, "runs/codes", "the codes and their manifest")
    parser.add_argument(
        "--format", choices=("jsonl", "parquet"), default="jsonl",
        help="codes.jsonl or codes.parquet (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--window-seconds", metavar="S", type=options.real(0.0, 86_400.0, open_at_least=True),
        default=30.0, help="recordings are encoded in windows of this length (default: 30)",
    )  # fmt: skip
    parser.add_argument(
        "--context-seconds", metavar="S", type=options.real(0.0, 86_400.0), default=0.0,
        help="that windows share; their codes are dropped, and 4 hides the seam (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--part", metavar="K/N", type=_part, default=(1, 1), help="part K of N of the rows alone"
    )
    parser.add_argument(
        "--max-bad", metavar="SHARE", type=options.real(0.0, 1.0), default=1.0,
        help="stop if a larger share of the rows is set aside, e.g. 0.01 (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--sample-rate", metavar="HZ", type=options.whole(MIN_SAMPLE_RATE, MAX_SAMPLE_RATE),
        help="rate of a raw stream on standard input: 16 bits, little-endian, one channel",
    )  # fmt: skip


def _source(text: str) -> str | Path:
    """Parses a place; keeps addresses and - as they are."""
    return text if text == paths.STDIN or bucket.is_address(text) else options.place(text)


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    part, parts = map(int, match.groups()) if match else (0, 0)
    if not 1 <= part <= parts:
        raise argparse.ArgumentTypeError(f"{text!r} is no part such as 3/16, from 1/16 to 16/16")
    return part, parts


def check(args: argparse.Namespace) -> None:
    """Raises UserError if a recording or the run does not exist, or `--out` is a file."""
    paths.check_places(args.audio)
    paths.check_out_folder(args.out)
    if args.sample_rate and paths.STDIN not in map(str, args.audio):
        raise UserError("--sample-rate: is that of a raw stream; give - for standard input")
    paths.check_bundle(args.run_folder, "tokenizer")


def run(args: argparse.Namespace) -> int:
    """Writes codes.jsonl and prints a summary."""
    window = tokenize.WindowConfig(args.window_seconds, args.context_seconds)
    config = tokenize.TokenizeConfig(
        window=window,
        part=args.part[0],
        parts=args.part[1],
        max_bad=args.max_bad,
        format=args.format,
        raw_rate=args.sample_rate,
        audio_anywhere=args.audio_anywhere,
    )
    return options.show(
        tokenize.tokenize(args.audio, run=args.run_folder, out=args.out, config=config)
    )
