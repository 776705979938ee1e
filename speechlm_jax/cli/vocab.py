"""`speechlm vocab`: the user's text -> a vocabulary that can encode any text."""

import argparse
from typing import Any

from speechlm_jax.cli import options
from speechlm_jax.cli.later import later
from speechlm_jax.data.sources import Rows
from speechlm_jax.verbs import paths

vocab = later("speechlm_jax.verbs.vocab")

DETAILS = """\
FILE is .txt (a document a line) or .jsonl (also .gz), or .parquet; globs are fine. Pieces of words
are learnt from it; what they cannot write is written in bytes, so that every text comes back
character by character. The codes are those of the run, or of a folder of codes. `speechlm prepare`
takes the folder as its --run."""
EXAMPLE = """\
speechlm vocab my_text.txt --out runs/my_vocab
speechlm vocab stories/*.txt more.jsonl.gz --size 16000 --run runs/my_run --out runs/my_vocab
speechlm vocab said.txt --run runs/my_tokenizer --voices runs/codes --out runs/voiced_vocab"""


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = options.add_command(
        subparsers, "vocab", run=run, check=check, details=DETAILS, example=EXAMPLE
    )
    parser.add_argument(
        "files", metavar="FILE", nargs="+", type=options.place, help="text to learn from"
    )
    parser.add_argument(
        "--size",
        metavar="N",
        type=options.positive,
        default=8000,
        help="text ids at most (default: %(default)s)",
    )
    parser.add_argument(
        "--field",
        metavar="NAME",
        default="text",
        help="field of rows that holds the text (default: %(default)s)",
    )
    parser.add_argument(
        "--voices", metavar="CODES", type=options.place,
        help="folder of codes whose speakers get ids: for the rows of a text-to-token model",
    )  # fmt: skip
    options.add_run(parser)
    options.add_out(parser, "runs/vocab", "the vocabulary")


def check(args: argparse.Namespace) -> None:
    """Raises UserError if a file or the codes do not exist, or `--out` is a file."""
    Rows(tuple(args.files), False, {}).files()
    paths.check_out_folder(args.out)
    paths.check_codes(args.run_folder)
    if args.voices is not None:
        paths.check_folder(args.voices, "a folder of codes")


def run(args: argparse.Namespace) -> int:
    """Writes the vocabulary and prints its sizes."""
    return options.show(
        vocab.vocab(
            args.files,
            run=args.run_folder,
            out=args.out,
            size=args.size,
            field=args.field,
            voices=args.voices,
        )
    )
