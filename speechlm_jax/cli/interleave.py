"""`speechlm interleave`: text documents -> interleaved speech-text documents."""

import argparse
from typing import Any

from speechlm_jax.cli import options
from speechlm_jax.cli.later import later
from speechlm_jax.folder_lock import FolderLock
from speechlm_jax.verbs import paths

interleave = later("speechlm_jax.verbs.interleave")

DETAILS = """\
FILE holds a document a line: plain text, or JSON objects with "text" (and "id", "speaker" if you
like; other fields are carried over). Text stays as it is written: joining the "text" of a
document's segments gives it back. Spans of words are turned into codes by the text-to-token model
of the run; "said" beside a span's "text" is what was spoken, in lower case and without punctuation.
What cannot be said (words outside the run's vocabulary, "$5.50", addresses) stays text. Documents
that cannot be used are set aside and listed in bad.jsonl. The counts and the ratio that came out
are printed."""
EXAMPLE = """\
speechlm interleave my_text.txt --out runs/my_documents
speechlm interleave my_documents.jsonl --span-corruption-ratio 0.5 --seed 1"""


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = options.add_command(
        subparsers, "interleave", run=run, check=check, details=DETAILS, example=EXAMPLE
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        type=options.place,
        help="documents in .txt, .jsonl or .parquet, UTF-8",
    )
    parser.add_argument(
        "--span-corruption-ratio",
        metavar="R",
        type=options.real(0.0, 1.0),
        default=0.3,
        help="fraction of the words that become speech, of those that can be said "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--mean-span-length",
        metavar="WORDS",
        type=options.real(0.0, 1e6, open_at_least=True),
        default=10.0,
        help="mean of the Poisson lengths of spans (default: %(default)s)",
    )
    options.add_run(parser)
    options.add_out(parser, "runs/interleaved", "documents.jsonl, bad.jsonl and stage.json")
    options.add_seed(parser)
    options.add_tensor(parser)


def check(args: argparse.Namespace) -> None:
    """Raises UserError if the file or the run does not exist."""
    paths.check_documents(args.file)
    paths.check_out_folder(args.out)
    paths.check_bundle(args.run_folder, "text_to_token")


def run(args: argparse.Namespace) -> int:
    """Writes documents.jsonl and prints its counts and the resulting span corruption ratio."""
    with FolderLock(args.out):
        return options.show(
            interleave.interleave(
                args.file,
                run=args.run_folder,
                out=args.out,
                span_corruption_ratio=args.span_corruption_ratio,
                mean_span_length=args.mean_span_length,
                seed=args.seed,
                tensor=args.tensor,
            )
        )
