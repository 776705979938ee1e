"""`speechlm synthesize`: text -> speech codes, by the text-to-token model."""

import argparse
from typing import Any

from speechlm_jax.cli import options
from speechlm_jax.cli.later import later
from speechlm_jax.folder_lock import FolderLock
from speechlm_jax.verbs import paths

synthesize = later("speechlm_jax.verbs.synthesize")

DETAILS = "Case and punctuation are dropped. `speechlm speak` turns the codes into audio."
EXAMPLE = """\
speechlm synthesize "what is the city of anna"
speechlm synthesize "what is the city of anna" "it is london" --temperature 0.5 --seed 1"""


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = options.add_command(
        subparsers, "synthesize", run=run, check=check, details=DETAILS, example=EXAMPLE
    )
    parser.add_argument("text", metavar="TEXT", nargs="+", help="a text; quote it")
    parser.set_defaults(more="text")
    parser.add_argument("--voice", metavar="NAME", help="a training voice (default: drawn by seed)")
    parser.add_argument(
        "--temperature",
        metavar="T",
        type=options.real(0.0, 100.0),
        default=0.5,
        help="of the sampling; 0 is greedy (default: %(default)s)",
    )
    options.add_run(parser)
    options.add_out(parser, "runs/codes", "codes.jsonl and its manifest")
    options.add_seed(parser)
    options.add_tensor(parser)


def check(args: argparse.Namespace) -> None:
    """Raises UserError if the run has no text-to-token model, or `--out` is a file."""
    paths.check_out_folder(args.out)
    paths.check_bundle(args.run_folder, "text_to_token")


def run(args: argparse.Namespace) -> int:
    """Writes codes.jsonl and prints a summary."""
    with FolderLock(args.out):
        return options.show(
            synthesize.synthesize(
                args.text,
                run=args.run_folder,
                out=args.out,
                voice=args.voice,
                temperature=args.temperature,
                seed=args.seed,
                tensor=args.tensor,
            )
        )
