"""`speechlm plan`: whether a training fits a TPU slice, and what bounds its speed."""

import argparse
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts, shipped
from speechlm_jax import config as configs
from speechlm_jax.cli import options
from speechlm_jax.errors import EXIT_DOES_NOT_FIT, EXIT_OK, UserError
from speechlm_jax.experiment.configs import LanguageModelExperiment, load_experiment
from speechlm_jax.planner import plan as planner
from speechlm_jax.planner.slices import CHIPS, GIB, parse_accelerator, parse_topology

DETAILS = f"""\
Compiles the very step that `speechlm train` would run with the real TPU compiler, on this machine
and without a TPU. Memory is the compiler's word; seconds, tokens a second and days are bounds: what
the slice could do at best, not measurements. Exit code 0 if it fits, {EXIT_DOES_NOT_FIT} if not."""
EXAMPLE = """\
speechlm plan configs/lm_9b_paper.py --topology v5p:4x4x4
speechlm plan configs/lm_1b5.py data.batch_size=128 --accelerator v5litepod-32 --json
speechlm plan configs/lm_9b_paper.py --topology v6e:8x8 --slices 2"""


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = options.add_command(subparsers, "plan", run=run, details=DETAILS, example=EXAMPLE)
    parser.add_argument("config", metavar="CONFIG", help="a config file of a language model")
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
        "--slices", metavar="N", type=int, default=1,
        help="so many of them; mesh.replica follows (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--length", metavar="N", type=int, default=8192, help="ids a row (default: %(default)s)"
    )
    parser.add_argument(
        "--vocab", metavar="N", type=int, default=168_960,
        help="ids, where the config leaves them to its rows (default: GLM-4-Voice's %(default)s)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the JSON object here too")


def run(args: argparse.Namespace) -> int:
    """Plans and prints."""
    parse, text = (
        (parse_topology, args.topology) if args.topology else (parse_accelerator, args.accelerator)
    )
    slices = parse(text, slices=args.slices)
    found = load_experiment(shipped.find(args.config))
    if not isinstance(found, LanguageModelExperiment):
        raise UserError(f"{args.config}: is not the config of a language model")
    replicas = [f"train.mesh.replica={slices.number}"] if slices.number > 1 else []
    experiment = configs.override(found, [*replicas, *args.overrides])
    plan = planner.plan_training(
        experiment, slices, length=args.length, vocab_size=args.vocab
    ).to_json()
    if args.out is not None:
        artifacts.write_json(args.out, plan)
    if args.json:
        options.show(plan)
    else:
        print(_told(plan))
    return EXIT_OK if plan["fits"] else EXIT_DOES_NOT_FIT


def _told(plan: dict[str, Any]) -> str:
    """A plan for people to read."""
    gib = {name: size / GIB for name, size in plan["parts_bytes"].items()}
    needed, capacity = plan["hbm_bytes"] / GIB, plan["capacity_bytes"] / GIB
    fits = "fits" if plan["fits"] else "does not fit"
    lines = [
        f"{plan['slices']}, {plan['chips']} chips, {plan['parameters'] / 1e9:.2f}B parameters, "
        f"{plan['tokens_per_chip']} tokens a chip and step",
        f"{fits}: needs {needed:.1f} GiB of {capacity:.2f} GiB a chip "
        f"({100 * plan['hbm_share']:.0f}%)",
        *(f"  {name:<12} {size:8.2f} GiB" for name, size in gib.items()),
    ]
    if plan["fits"]:
        lines += ["a step's collectives, on each chip:"]
        lines += [
            f"  {one['kind']:<19} {one['network']} {one['count']:6} times "
            f"{one['bytes'] / GIB:9.2f} GiB"
            for one in plan["collectives"]
        ]
        seconds = ", ".join(f"{name} {x:.3f}" for name, x in plan["bounds_seconds"].items())
        lines += [
            f"a step takes at least {plan['step_seconds_bound']:.3f} s, bound by {plan['bound']} "
            f"(projection; s by bound: {seconds})",
            f"at most {plan['tokens_per_second_bound']:,.0f} tokens a second (projection)",
        ]
        if plan["days_bound"] is not None:
            lines += [f"the config's budget takes at least {plan['days_bound']:.1f} days"]
    return "\n".join(lines)
