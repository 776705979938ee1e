"""`speechlm bench`: how fast a training step is on this machine."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any, get_args

from speechlm_jax import artifacts, shipped
from speechlm_jax import config as configs
from speechlm_jax.cli import options
from speechlm_jax.errors import UserError
from speechlm_jax.lm import bench, presets
from speechlm_jax.lm.bench import BenchConfig
from speechlm_jax.nn.flash import Kernel
from speechlm_jax.nn.language_model import Dtype, LanguageModelConfig
from speechlm_jax.sharding import MeshConfig
from speechlm_jax.train.optimizer import OptimizerConfig

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
    parser = options.add_command(subparsers, "bench", run=run, details=DETAILS, example=EXAMPLE)
    parser.add_argument("what", metavar="train", choices=("train",), help="the step to time: train")
    parser.add_argument(
        "model", metavar="CONFIG",
        help=f"a config file of a language model, or a size: {', '.join(presets.SIZES)}",
    )  # fmt: skip
    parser.add_argument(
        "overrides", metavar="field=value", nargs="*", default=[],
        help="fields of lm.bench.BenchConfig, e.g. rows=8 mesh.tensor=2",
    )  # fmt: skip
    options.add_vocab(parser)
    parser.add_argument("--dtype", choices=get_args(Dtype), help="in place of the model's")
    parser.add_argument("--remat", choices=("none", "full", "dots"), help="likewise")
    parser.add_argument("--attention", choices=get_args(Kernel), help="likewise")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the JSON object here too")
    parser.set_defaults(more="overrides")


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
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


def _read(name: str) -> tuple[LanguageModelConfig, BenchConfig]:
    """Model, and what of a training's config concerns the step, of a size or a config file."""
    for size in presets.SIZES:
        if name == size:
            return presets.preset(size), BenchConfig()
    path = shipped.find(name)
    data = (
        artifacts.read_json(path) if path.suffix == ".json" else configs.to_json(configs.load(path))
    )
    if data.get("class") != "LanguageModelExperiment":
        raise UserError(f"{name}: is not the config of a language model")
    train = data["train"]
    optimizer = configs.from_json(OptimizerConfig, train["optimizer"])
    config = BenchConfig(
        rows=data["data"]["batch_size"],
        num_microbatches=train["num_microbatches"],
        optimizer=dataclasses.replace(optimizer, schedule="constant", warmup_steps=0),
        mesh=configs.from_json(MeshConfig, train["mesh"]),
        z_loss=data["z_loss"],
    )
    return configs.from_json(LanguageModelConfig, data["model"]), config


def _replaced(config: Any, fields: dict[str, Any]) -> Any:
    return dataclasses.replace(config, **{k: v for k, v in fields.items() if v is not None})
