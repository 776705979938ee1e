"""`speechlm evaluate`: figures of a checkpoint."""

import argparse
from typing import Any

from speechlm_jax.cli import options
from speechlm_jax.cli.later import later
from speechlm_jax.verbs import paths

evaluate = later("speechlm_jax.verbs.evaluate")

DETAILS = """\
Every figure comes with its item count and a bootstrap 95% interval; the scored items are written
beside them, so that anyone can recount."""
EXAMPLE = """\
speechlm evaluate runs/quickstart/lm_interleaved --run runs/quickstart --out runs/figures
speechlm evaluate runs/lab --run runs/vocab"""


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = options.add_command(
        subparsers, "evaluate", run=run, check=check, details=DETAILS, example=EXAMPLE
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        type=options.place,
        help="a run's folder, or one of its steps",
    )
    options.add_run(parser)
    options.add_out(parser, "runs/figures", "figures.json and the scored items")
    options.add_seed(parser)


def check(args: argparse.Namespace) -> None:
    """UserError where the checkpoint, or the run, is not there."""
    paths.check_folder(args.checkpoint, paths.CHECKPOINT)
    paths.check_out_folder(args.out)
    paths.check_vocab(args.run_folder)


def run(args: argparse.Namespace) -> int:
    """Scores the checkpoint and prints its figures."""
    return options.show(
        evaluate.evaluate(args.checkpoint, run=args.run_folder, out=args.out, seed=args.seed)
    )
