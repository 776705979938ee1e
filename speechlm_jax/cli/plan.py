"""`speechlm plan`: memory and speed bounds of a training on a TPU slice."""

import argparse
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from speechlm_jax import artifacts, shipped
from speechlm_jax import config as configs
from speechlm_jax.cli import options
from speechlm_jax.cli.later import later
from speechlm_jax.errors import EXIT_DOES_NOT_FIT, EXIT_OK, UserError
from speechlm_jax.planner.slices import CHIPS, GIB, Slices, parse_accelerator, parse_topology

experiments = later("speechlm_jax.experiment.configs")
decoding = later("speechlm_jax.planner.decode")
planning = later("speechlm_jax.planner.plan")
searching = later("speechlm_jax.planner.search")
tokenizers = later("speechlm_jax.planner.tokenizer")

IDS_A_ROW, IDS_A_TRANSCRIPT = 8192, 448  # as the paper packs rows; as Whisper reads 30 s

DETAILS = f"""\
Compiles the very step and evaluation that `speechlm train` would run with the real TPU compiler, on
this machine and without a TPU. Memory is the compiler's word; seconds, tokens a second and days are
bounds: what the slice could do at best, not measurements. Exit code 0 if it fits,
{EXIT_DOES_NOT_FIT} if not."""
EXAMPLE = """\
speechlm plan configs/lm_9b_paper.py --topology v5p:4x4x4
speechlm plan configs/lm_1b5.py data.batch_size=128 --accelerator v5litepod-32 --json
speechlm plan configs/lm_9b_paper.py --topology v6e:8x8 --slices 2
speechlm plan configs/lm_9b_paper.py --topology v6e:8x8 --search
speechlm plan configs/lm_1b5.py --topology v5e:2x4 --decode --requests 256
speechlm plan configs/speech_tokenizer_digits.py --topology v5e:2x2 --vocab 32 --largest"""


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = options.add_command(
        subparsers, "plan", run=run, check=check, details=DETAILS, example=EXAMPLE
    )
    parser.add_argument("config", metavar="CONFIG", help=options.CONFIG)
    parser.add_argument(
        "overrides", metavar="field=value", nargs="*", default=[],
        help="a field of the config, e.g. data.batch_size=128 train.num_microbatches=1",
    )  # fmt: skip
    parser.set_defaults(more="overrides")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--topology", metavar="CHIP:SHAPE", help=f"{', '.join(CHIPS)}, and chips along each axis"
    )
    where.add_argument("--accelerator", metavar="NAME", help="the same by Cloud's name: v5p-128")
    parser.add_argument(
        "--slices", metavar="N", type=options.positive, default=1,
        help="so many of them; mesh.replica follows (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--length",
        metavar="N",
        type=options.positive,
        help=f"ids a row (default: {IDS_A_ROW}), or a transcript ({IDS_A_TRANSCRIPT})",
    )
    options.add_vocab(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--search", action="store_true",
        help="try meshes, remat and microbatches; the best that fits (some minutes a candidate)",
    )  # fmt: skip
    what.add_argument(
        "--largest", action="store_true", help="also find the most rows at a time that fit"
    )
    what.add_argument(
        "--decode", action="store_true", help="plan generation: the engine's two programs"
    )
    parser.add_argument(
        "--requests", metavar="N", type=options.positive, default=32,
        help="with --decode: at a time, over all chips (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--tensor", metavar="N", type=options.positive,
        help="with --decode: chips that share a request (default: as heads of keys divide)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--out", metavar="FILE", type=options.place, help="write the JSON object here too"
    )
    parser.add_argument(
        "--cache", metavar="DIR", type=options.place, default=cache_folder(),
        help="what was compiled before (default: %(default)s)",
    )  # fmt: skip


def check(args: argparse.Namespace) -> None:
    """Raises UserError if the config does not exist, or no chip has such a topology."""
    _slices(args)
    shipped.find(args.config)


def run(args: argparse.Namespace) -> int:
    """Makes the plan and prints it."""
    slices = _slices(args)
    found = experiments.load_experiment(shipped.find(args.config))
    if isinstance(found, experiments.SpeechDecoderExperiment):
        raise UserError(f"{args.config}: is the config of a speech decoder, which has no plan")
    replicas = [f"train.mesh.replica={slices.number}"] if slices.number > 1 else []
    args.overrides = [*replicas, *args.overrides]
    experiment = configs.override(found, args.overrides)
    if isinstance(experiment, experiments.SpeechTokenizerExperiment):
        plan, told = _tokenizer_answer(args, experiment, slices)
    else:
        args.length = args.length or IDS_A_ROW
        plan, told = _answer(args, planning.with_vocab(experiment, args.vocab), slices)
    if args.out is not None:
        artifacts.write_json(args.out, plan)
    if args.json:
        options.show(plan)
    else:
        print(told(plan))
    return EXIT_OK if plan["fits"] else EXIT_DOES_NOT_FIT


def _slices(args: argparse.Namespace) -> Slices:
    if args.topology is not None:
        return parse_topology(args.topology, slices=args.slices)
    return parse_accelerator(args.accelerator, slices=args.slices)


def _answer(
    args: argparse.Namespace, experiment: Any, slices: Slices
) -> tuple[dict[str, Any], Callable[[dict[str, Any]], str]]:
    """Returns the requested plan as JSON data, and the function that turns it into text."""
    if args.decode:
        plan = decoding.plan_decoding(
            experiment.model, slices, requests=args.requests, length=args.length,
            tensor=args.tensor, keep=args.cache,
        )  # fmt: skip
        return plan.to_json(), _tell_decoding
    planner = partial(
        planning.plan_training,
        slices=slices,
        length=args.length,
        vocab_size=args.vocab,
        keep=args.cache,
    )
    if args.search:
        with _progress() as report:
            tried = searching.search(experiment, slices, planner, length=args.length, report=report)
        return _searched(tried, args.overrides), _tell_search
    plan = planner(experiment).to_json()
    if args.largest:
        plan |= _largest(experiment, slices, planner)
    return plan, _tell_training


def _tokenizer_answer(
    args: argparse.Namespace, experiment: Any, slices: Slices
) -> tuple[dict[str, Any], Callable[[dict[str, Any]], str]]:
    """Returns the plan of a speech tokenizer, as `_answer` does.

    Raises:
      UserError: it is asked for what only a language model has.
    """
    for option in ("search", "decode"):
        if getattr(args, option):
            raise UserError(f"--{option}: is for language models; {args.config} is a tokenizer's")
    planner = partial(
        tokenizers.plan_tokenizer,
        slices=slices,
        length=args.length or IDS_A_TRANSCRIPT,
        vocab_size=args.vocab,
        keep=args.cache,
    )
    plan = planner(experiment).to_json()
    if args.largest:
        plan |= _largest(experiment, slices, planner, field="data.buckets.batch_size")
    return plan, _tell_tokenizer


def _largest(experiment: Any, slices: Slices, planner: Any, **how: str) -> dict[str, Any]:
    """Returns the most rows at a time that fit, and their share of memory."""
    most = searching.largest(experiment, slices, planner, **how)
    if most is None:
        return {"largest_microbatch_rows": 0, "largest_hbm_share": None}
    share = round(most.hbm_share, 4)
    return {"largest_microbatch_rows": most.microbatch_rows, "largest_hbm_share": share}


def cache_folder() -> Path:
    """Returns the folder in which results of compiled programs are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "speechlm_jax/plans"


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None]]:
    """Shows a progress bar over the candidates of a search."""
    with tqdm(unit="way") as bar:

        def report(done: int, total: int, text: str) -> None:
            bar.total, bar.n = total, done
            bar.set_postfix_str(text)

        yield report


def _searched(tried: list[Any], given: list[str]) -> dict[str, Any]:
    """Returns the best plan, the overrides that give it, and all plans that were compiled."""
    best = searching.best(tried)
    start = {"fits": False} if best is None else best.plan.to_json()
    found = () if best is None else best.overrides
    fields = {assignment.partition("=")[0] for assignment in found}
    kept = [x for x in given if x.partition("=")[0].strip() not in fields]
    return {
        **start,
        "overrides": None if best is None else [*kept, *found],
        "tried": [one.to_json() for one in tried],
    }


def _tell_search(plan: dict[str, Any]) -> str:
    lines = [
        f"{'fits' if one['has_spare'] else 'no  '} {100 * one['hbm_share']:4.0f}%  "
        + shlex.join(one["overrides"])
        for one in plan["tried"]
    ]
    if not plan["fits"]:
        spare = f"{100 * searching.SPARE:.0f}% to spare"
        return "\n".join([*lines, f"nothing fits with {spare}; take more chips or shorter rows"])
    return "\n".join([*lines, f"best: {shlex.join(plan['overrides'])}", _tell_training(plan)])


def _tell_decoding(plan: dict[str, Any]) -> str:
    start = f"{plan['slices']}, {plan['requests']} requests of {plan['length']} ids at a time"
    needs = (
        f"of that, adding ids needs {plan['advance_hbm_bytes'] / GIB:.1f} GiB and reading prompts "
        f"{plan['read_hbm_bytes'] / GIB:.1f} GiB"
    )
    copies = f"copies of a layer's keys or values in the programs: {plan['cache_copies']}"
    return "\n".join(
        [f"{start}, {plan['tensor']} chips a request", *_tell_step(plan), needs, copies]
    )


def _tell_training(plan: dict[str, Any]) -> str:
    lines = [
        f"{plan['slices']}, {plan['chips']} chips, {plan['parameters'] / 1e9:.2f}B parameters, "
        f"{plan['tokens_per_chip']} tokens a chip and step",
        *_tell_step(plan),
        f"of that, a step needs {plan['step_hbm_bytes'] / GIB:.1f} GiB and an evaluation "
        f"{plan['evaluation_hbm_bytes'] / GIB:.1f} GiB",
    ]
    if plan.get("days_bound") is not None:
        lines += [f"the config's budget takes at least {plan['days_bound']:.1f} days"]
    return "\n".join([*lines, *_tell_largest(plan, "rows")])


def _tell_tokenizer(plan: dict[str, Any]) -> str:
    lines = [
        f"{plan['slices']}, {plan['chips']} chips, {plan['parameters'] / 1e9:.2f}B parameters, "
        f"{plan['rows']} clips of {plan['clip_seconds']:g} s a step, in "
        f"{plan['num_microbatches']} parts",
        *_tell_step(plan),
    ]
    return "\n".join([*lines, *_tell_largest(plan, "clips")])


def _tell_largest(plan: dict[str, Any], what: str) -> list[str]:
    if "largest_microbatch_rows" not in plan:
        return []
    return [f"at most {plan['largest_microbatch_rows']} {what} at a time fit, over all chips"]


def _tell_step(plan: dict[str, Any]) -> list[str]:
    """Returns the lines that every plan has."""
    needed, capacity = plan["hbm_bytes"] / GIB, plan["capacity_bytes"] / GIB
    fits = "fits" if plan["fits"] else "does not fit"
    lines = [
        f"{fits}: needs {needed:.1f} GiB of {capacity:.2f} GiB a chip "
        f"({100 * plan['hbm_share']:.0f}%)",
        *(f"  {name:<12} {size / GIB:8.2f} GiB" for name, size in plan["parts_bytes"].items()),
    ]
    if not plan["fits"]:
        return lines
    seconds = ", ".join(f"{name} {x:.3g}" for name, x in plan["bounds_seconds"].items())
    return [
        *lines,
        "a step's collectives, on each chip:",
        *(
            f"  {one['kind']:<19} {one['network']} {one['count']:6} times "
            f"{one['bytes'] / GIB:9.2f} GiB"
            for one in plan["collectives"]
        ),
        f"a step takes at least {plan['step_seconds_bound']:.3g} s, bound by {plan['bound']} "
        f"(projection; s by bound: {seconds})",
        f"at most {_rate(plan)} (projection)",
    ]


def _rate(plan: dict[str, Any]) -> str:
    if "audio_hours_per_hour_bound" in plan:
        return f"{plan['audio_hours_per_hour_bound']:,.0f} hours of audio an hour"
    return f"{plan['tokens_per_second_bound']:,.0f} tokens a second"
