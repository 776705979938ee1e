"""`speechlm convert`: Hugging Face model folders <-> runs."""

import argparse
import importlib.util
from typing import Any

from speechlm_jax.cli import options
from speechlm_jax.cli.later import later
from speechlm_jax.errors import UserError
from speechlm_jax.verbs import paths

convert = later("speechlm_jax.verbs.convert")
EXTRA = ("safetensors", "tokenizers", "ml_dtypes")  # the extra `hf` of setup.py

DETAILS = """\
A folder with config.json and safetensors (GLM-4, GLM-4-Voice, GLM-4-0414, Llama 3, Qwen2, Qwen2.5,
Qwen3) becomes a run: its vocabulary is extended by specials and speech codes, and training starts
from it by `train.init_from`. GLM-4-Voice keeps its own codes: `--run` is then a folder of codes
made with its speech tokenizer. A run becomes a folder that transformers opens. A Whisper, or a
speech tokenizer made from it (WhisperVQEncoder), is converted both ways without --run; in float32,
what was not trained comes back bit for bit."""
EXAMPLE = """\
speechlm convert Qwen2.5-1.5B --run runs/my_tokenizer --out runs/base
speechlm convert runs/lm --run runs/base --out my-speech-lm
speechlm convert whisper-base --out runs/whisper-base"""


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = options.add_command(
        subparsers, "convert", run=run, check=check, details=DETAILS, example=EXAMPLE
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        type=options.place,
        help="a model folder of Hugging Face, or a run",
    )
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16",
        help="of exported weights (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--length", metavar="N", type=options.positive, default=8192,
        help="longest context that an exported config names (default: %(default)s)",
    )  # fmt: skip
    options.add_run(parser)
    options.add_out(parser, "runs/base", "what it is turned into; must be new")
    options.add_seed(parser)


def check(args: argparse.Namespace) -> None:
    """Raises UserError if a library or a folder is missing, or if the output is not empty."""
    for library in EXTRA:
        if importlib.util.find_spec(library) is None:
            raise UserError(f"convert: {library} is not installed; `pip install -e '.[hf]'`")
    paths.check_source(args.source, args.out)
    if not paths.is_whisper(args.source):
        paths.check_folder(args.run_folder, "--run a run, or a folder of codes")


def run(args: argparse.Namespace) -> int:
    """Converts a model and prints the result."""
    return options.show(
        convert.convert(
            args.source, run=args.run_folder, out=args.out, dtype=args.dtype, length=args.length,
            seed=args.seed,
        )
    )  # fmt: skip
