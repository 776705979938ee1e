"""`speechlm chat`: a spoken question -> a spoken answer."""

import argparse
from typing import Any

from speechlm_jax.audio.wav import check_file
from speechlm_jax.cli import options
from speechlm_jax.cli.later import later
from speechlm_jax.verbs import paths

chat = later("speechlm_jax.verbs.chat")

DETAILS = """\
Two modes, as in the paper: text_guided (the reply's text first, then its speech) and speech_only
(speech in, speech out, no text between)."""
EXAMPLE = """\
speechlm chat question.wav --out runs/reply
speechlm chat question.wav --mode speech_only"""


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = options.add_command(
        subparsers, "chat", run=run, check=check, details=DETAILS, example=EXAMPLE
    )
    parser.add_argument(
        "audio", metavar="AUDIO", type=options.place, help="a recording of the question"
    )
    parser.add_argument(
        "--mode",
        choices=("text_guided", "speech_only"),
        default="text_guided",
        help="how the reply is made (default: %(default)s)",
    )
    options.add_run(parser)
    options.add_out(parser, "runs/chat", "reply.wav and reply.json")
    options.add_seed(parser)


def check(args: argparse.Namespace) -> None:
    """Raises UserError if the recording, or a run with the models of a chat, does not exist."""
    check_file(args.audio)
    paths.check_out_folder(args.out)
    paths.check_bundle(args.run_folder, "chat", "tokenizer", "speech_decoder")


def run(args: argparse.Namespace) -> int:
    """Writes the reply's audio and text, and prints the result."""
    return options.show(
        chat.chat(args.audio, run=args.run_folder, out=args.out, mode=args.mode, seed=args.seed)
    )
