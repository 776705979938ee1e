"""`speechlm bench`: speed of a training step on this machine."""

import argparse
import dataclasses
from typing import Any

from speechlm_jax import artifacts, shipped
from speechlm_jax import config as configs
from speechlm_jax.cli import options
from speechlm_jax.cli.later import later
from speechlm_jax.lm.sizes import SIZES

bench = later("speechlm_jax.lm.bench")
presets = later("speechlm_jax.lm.presets")
# Copies of nn.language_model.Dtype and nn.flash.Kernel, whose import needs JAX; a test compares
DTYPES = ("float32", "bfloat16")
KERNELS = ("auto", "reference", "blockwise", "splash", "cudnn")

DETAILS = """\
Compiles and times the very step that `speechlm train` runs, on synthetic packed rows: no data, no
network. Prints tokens a second, MFU in both conventions (full attention, causal attention; over
documents, not rows), memory and compile time as one JSON object. Sizes, and a run's config.json,
need jax, flax, optax and numpy alone; a config file needs what it imports."""
EXAMPLE = """\
speechlm bench train 1.5B rows=4 length=8192
speechlm bench train configs/lm_1b5.py rows=4 length=4096 --vocab 168960
speechlm bench train tiny rows=2 length=256 --vocab 512 --dtype float32"""


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = options.add_command(
        subparsers, "bench", run=run, check=check, details=DETAILS, example=EXAMPLE
    )
    parser.add_argument("what", metavar="train", choices=("train",), help="the step to time: train")
    parser.add_argument(
        "model", metavar="CONFIG",
        help=f"a size ({', '.join(SIZES)}), or of a language model: {options.CONFIG}",
    )  # fmt: skip
    parser.add_argument(
        "overrides", metavar="field=value", nargs="*", default=[],
        help="fields of lm.bench.BenchConfig, e.g. rows=8 mesh.tensor=2",
    )  # fmt: skip
    options.add_vocab(parser)
    parser.add_argument("--dtype", choices=DTYPES, help="in place of the model's")
    parser.add_argument("--remat", choices=("none", "full", "dots"), help="likewise")
    parser.add_argument("--attention", choices=KERNELS, help="likewise")
    parser.add_argument(
        "--out", metavar="FILE", type=options.place, help="write the JSON object here too"
    )
    parser.set_defaults(more="overrides")


def check(args: argparse.Namespace) -> None:
    """Raises UserError if the config does not exist."""
    if args.model not in SIZES:
        shipped.find(args.model)


def run(args: argparse.Namespace) -> int:
    """Measures the step and prints the result."""
    model, config = _read(args.model)
    execution = {"remat": args.remat, "attention": args.attention}
    stack = model.transformer
    whole = {
        "dtype": args.dtype,
        "vocab_size": model.vocab_size or args.vocab,
        "transformer": dataclasses.replace(stack, execution=_replaced(stack.execution, execution)),
    }
    config = configs.override(config, args.overrides)
    found = bench.bench_train(_replaced(model, whole), config)
    if args.out is not None:
        artifacts.write_json(args.out, found)
    return options.show(found)


def _read(name: str) -> tuple[Any, Any]:
    """Returns the model and the benchmark's config, from a size or a config file."""
    if name in SIZES:
        return presets.preset(name), bench.BenchConfig()
    path = shipped.find(name)
    data = (
        artifacts.read_json(path) if path.suffix == ".json" else configs.to_json(configs.load(path))
    )
    return bench.from_experiment(data, name)


def _replaced(config: Any, fields: dict[str, Any]) -> Any:
    return dataclasses.replace(config, **{k: v for k, v in fields.items() if v is not None})
