"""`speechlm train`: one training run from a config file."""

import argparse
from pathlib import Path
from typing import Any

from speechlm_jax import experiment, shipped
from speechlm_jax.cli import options
from speechlm_jax.errors import EXIT_OK

DETAILS = """\
The config is a Python file, yours or one that ships; overrides change its fields. A folder that
holds a checkpoint of the same run is continued. SIGINT and SIGTERM save and exit with code 75."""
EXAMPLE = """\
speechlm train configs/speech_tokenizer_digits.py
speechlm train my_config.py total_steps=200 optimizer.peak=1e-3 --workdir runs/short"""


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = options.add_command(subparsers, "train", run=run, details=DETAILS, example=EXAMPLE)
    parser.add_argument("config", metavar="CONFIG", help="a config file")
    parser.add_argument(
        "overrides",
        metavar="field=value",
        nargs="*",
        help="a field of the config and its value as JSON, e.g. seed=1",
    )
    parser.set_defaults(more="overrides")
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        type=Path,
        help="folder of the run: checkpoints, logs (default: runs/NAME_OF_CONFIG)",
    )


def run(args: argparse.Namespace) -> int:
    """Trains until the config's last step."""
    config = shipped.find(args.config)
    workdir = args.workdir or Path("runs") / config.stem
    experiment.train(config, overrides=args.overrides, workdir=workdir)
    return EXIT_OK
