"""`speechlm bench`: how fast a training step is on this machine."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any, get_args

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.cli import options
from speechlm_jax.errors import UserError
from speechlm_jax.lm import bench, presets
from speechlm_jax.lm.bench import BenchConfig

DETAILS = """\
Compiles and times the very step that `speechlm train` runs, on synthetic packed rows: no data, no
network. Prints tokens a second, MFU in both conventions (full attention, causal attention; over
documents, not rows), memory and compile time as one JSON object."""
EXAMPLE = """\
speechlm bench 1.5B rows=4 length=8192
speechlm bench tiny rows=2 length=256 --vocab 512 --dtype float32"""


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = options.add_command(subparsers, "bench", run=run, details=DETAILS, example=EXAMPLE)
    sizes = get_args(presets.Size)
    parser.add_argument("size", metavar="SIZE", choices=sizes, help=f"one of {', '.join(sizes)}")
    parser.add_argument(
        "overrides", metavar="field=value", nargs="*", default=[],
        help="fields of lm.bench.BenchConfig, e.g. rows=8 mesh.tensor=2",
    )  # fmt: skip
    parser.add_argument(
        "--vocab", metavar="N", type=int, default=168_960,
        help="ids of the vocabulary (default: GLM-4-Voice's %(default)s)",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--remat", choices=("none", "full", "dots"), default="full")
    parser.add_argument(
        "--attention", choices=("auto", "reference", "splash", "triton"), default="auto"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the JSON object here too")
    parser.set_defaults(more="overrides")


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    model = presets.preset(args.size, vocab_size=args.vocab, dtype=args.dtype, remat=args.remat)
    stack = dataclasses.replace(model.transformer, attention=args.attention)
    config = configs.override(BenchConfig(), args.overrides)
    if config.steps < 1 or config.rows < 1 or config.length < 8:
        raise UserError("bench: steps and rows must be 1 or more, length 8 or more")
    found = bench.bench_train(dataclasses.replace(model, transformer=stack), config)
    if args.out is not None:
        artifacts.write_json(args.out, found)
    return options.show(found)
