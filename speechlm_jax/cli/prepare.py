"""`speechlm prepare`: a mixture's tasks -> packed shards."""

import argparse
from typing import Any

from speechlm_jax.cli import options
from speechlm_jax.cli.later import later
from speechlm_jax.folder_lock import FolderLock
from speechlm_jax.verbs import paths

prepare = later("speechlm_jax.verbs.prepare")  # imports TensorFlow

DETAILS = """\
Shards are made per task, so another mixture of the same tasks prepares nothing anew. Training reads
everything that it needs from the manifests and imports no task."""
EXAMPLE = """\
speechlm prepare my_mixture --module my_lab.tasks --out runs/my_data --length 512"""


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = options.add_command(
        subparsers, "prepare", run=run, check=check, details=DETAILS, example=EXAMPLE
    )
    parser.add_argument("mixture", metavar="MIXTURE", help="a registered SeqIO mixture or task")
    parser.add_argument(
        "--length",
        metavar="N",
        type=options.whole(2),
        default=512,
        help="ids in a row (default: %(default)s)",
    )
    parser.add_argument(
        "--allow-unknown",
        action="store_true",
        help="prepare a task although a fifth of its text is words that the vocabulary lacks",
    )
    options.add_run(parser)
    options.add_out(parser, "runs/data", "the shards and the mixture's manifest")
    options.add_seed(parser)


def check(args: argparse.Namespace) -> None:
    """Raises UserError if the run does not exist, or `--out` is a file."""
    paths.check_out_folder(args.out)
    paths.check_bundle(args.run_folder)


def run(args: argparse.Namespace) -> int:
    """Prepares the tasks that are not prepared yet and prints the counts."""
    with FolderLock(args.out):
        return options.show(
            prepare.prepare(
                args.mixture,
                run=args.run_folder,
                out=args.out,
                length=args.length,
                seed=args.seed,
                allow_unknown=args.allow_unknown,
            )
        )
