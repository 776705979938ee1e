"""Plans of the production configs: docs/plans/*.json, and the table in docs/plans/README.md.

    python benchmarks/plans.py                  # all, some minutes each on two cores
    python benchmarks/plans.py --only v6e       # those whose file name holds this
    python benchmarks/plans.py --table          # the table alone, of the files that are there

Runs `speechlm plan ... --json` for each, one after the other. Exit code 1 if one that should fit
does not, or has less than 8% of a chip's memory to spare.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PLANS = ROOT / "docs/plans"
SPARE = 0.08
# File name: arguments of `speechlm plan`.
RECORDED = {
    "lm_9b_v5p-4x4x4": "configs/lm_9b_paper.py --topology v5p:4x4x4",
    "lm_9b_v6e-8x8": (
        "configs/lm_9b_paper.py data.batch_size=128 train.num_microbatches=1 --topology v6e:8x8"
    ),
    "lm_9b_v6e-8x8-accumulated": "configs/lm_9b_paper.py --topology v6e:8x8",
    "lm_9b_v6e-8x8-2": (
        "configs/lm_9b_paper.py train.num_microbatches=4 --topology v6e:8x8 --slices 2"
    ),
    "lm_9b_v5e-2x2": "configs/lm_9b_paper.py train.num_microbatches=256 --topology v5e:2x2",
    "lm_1b5_v5e-4x8": "configs/lm_1b5.py --topology v5e:4x8 --length 4096",
}
# Recorded to show that the answer is no, or hardly.
TOO_SMALL = {"lm_9b_v5e-2x2", "lm_9b_v6e-8x8-accumulated", "lm_9b_v6e-8x8-2"}
HEAD = """\
# Plans

What the real TPU compiler says of the production configs, compiled on a machine without a TPU;
`python benchmarks/plans.py` writes this table and the JSON files beside it. Memory is the
compiler's word. Seconds, tokens and days are bounds, what the slice could do at best, and no
measurement: nothing here was run on a TPU.

"""
COLUMNS = (
    "plan", "chips", "tokens a chip and microbatch", "memory a chip",
    "weights, optimizer, temporaries (GiB)", "least time of a step",
    "tokens a second at most", "days at least",
)  # fmt: skip


def table_row(name: str, plan: dict[str, Any]) -> str:
    """One line of the table."""
    gib = {part: size / 2**30 for part, size in plan["parts_bytes"].items()}
    parts = [f"{gib[p]:.1f}" for p in ("weights", "optimizer", "temporaries") if p in gib]
    share = f"{plan['hbm_bytes'] / 2**30:.1f} of {plan['capacity_bytes'] / 2**30:.2f} GiB"
    tokens = plan["tokens_per_chip"] // plan["num_microbatches"]
    start = f"| [`{name}`]({name}.json) | {plan['chips']} | {tokens:,} | "
    if not plan["fits"]:
        return f"{start}**does not fit**: {share} | {', '.join(parts)} | | | |"
    days = "" if plan["days_bound"] is None else f"{plan['days_bound']:.1f}"
    return (
        f"{start}{share} ({100 * plan['hbm_share']:.0f}%) | {', '.join(parts)} | "
        f"{plan['step_seconds_bound']:.2f} s, {plan['bound']} | "
        f"{plan['tokens_per_second_bound']:,.0f} | {days} |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Plans, and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="part of a file name")
    parser.add_argument("--table", action="store_true", help="plan nothing")
    args = parser.parse_args(arguments)
    PLANS.mkdir(parents=True, exist_ok=True)
    for name, asked in RECORDED.items():
        if args.only in name and not args.table:
            line = ["plan", *asked.split(), "--json", "--out", str(PLANS / f"{name}.json")]
            command = [sys.executable, "-m", "speechlm_jax.cli.main", *line]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
            print(json.dumps({"plan": name, "exit_code": done.returncode}), flush=True)
    files = {name: PLANS / f"{name}.json" for name in RECORDED}
    plans = {
        name: json.loads(file.read_text(encoding="utf-8"))
        for name, file in files.items()
        if file.is_file()
    }
    head = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    rows = [*head, *(table_row(name, plan) for name, plan in plans.items())]
    (PLANS / "README.md").write_text(HEAD + "\n".join(rows) + "\n", encoding="utf-8")
    good = {name: plan["fits"] and plan["hbm_share"] <= 1 - SPARE for name, plan in plans.items()}
    return int(any(good[name] == (name in TOO_SMALL) for name in plans))


if __name__ == "__main__":
    sys.exit(main())
