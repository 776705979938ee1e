"""`speechlm evaluate`: figures of a checkpoint."""

import argparse
import os
from typing import Any

from speechlm_jax.cli import options
from speechlm_jax.cli.later import later
from speechlm_jax.shipped import RUN_VARIABLE
from speechlm_jax.verbs import paths

evaluate = later("speechlm_jax.verbs.evaluate")

DETAILS = """\
Every figure comes with its item count and a bootstrap 95% interval; the scored items are written
beside them, so that anyone can recount. Held-out loss needs the checkpoint alone."""
EXAMPLE = """\
speechlm evaluate runs/mine/lm_interleaved --run runs/mine --out runs/figures
speechlm evaluate runs/lab"""


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
    parser.add_argument(
        "--run", dest="run_folder", metavar="DIR", type=options.place,
        default=os.environ.get(RUN_VARIABLE) or None,
        help="a bundle of the checkpoint's vocabulary: its tokenizer reads answers, its clips are "
        f"asked about (default: ${RUN_VARIABLE}, or the run that the checkpoint lies in, or none)",
    )  # fmt: skip
    parser.add_argument(
        "--mixture", metavar="FILE", type=os.path.expanduser,
        help="prepared rows of the held-out loss, NAME.mixture.json (default: those that the model "
        "was trained on; a converted model was trained on none)",
    )  # fmt: skip
    options.add_out(parser, "runs/figures", "figures.json and the scored items")
    options.add_seed(parser)
    options.add_tensor(parser)


def check(args: argparse.Namespace) -> None:
    """Raises UserError if the checkpoint or the run does not exist."""
    paths.check_checkpoint(args.checkpoint)
    paths.check_out_folder(args.out)
    if args.mixture is not None:
        paths.check_mixture(args.mixture)
    if args.run_folder is not None:
        paths.check_bundle(args.run_folder)


def run(args: argparse.Namespace) -> int:
    """Scores the checkpoint and prints its figures."""
    return options.show(
        evaluate.evaluate(
            args.checkpoint,
            run=args.run_folder,
            mixture=args.mixture,
            out=args.out,
            seed=args.seed,
            tensor=args.tensor,
        )
    )
