"""Figures of several quickstart runs side by side, as a Markdown table.

    for seed in 1 2 3; do speechlm quickstart --seed $seed --out runs/seed$seed; done
    python benchmarks/seeds.py runs/seed1 runs/seed2 runs/seed3

A cell is a value with its 95% interval. The last row is the wall time of each run. Below the table
are the bars that each run misses.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts
from speechlm_jax.evals.items import Figure
from speechlm_jax.report.claims import CLAIMS, judge

NOT_RATIOS = ("_db", "perplexity")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; returns exit code 1 if a run misses a bar."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--figure", action="append", default=[], help="only figures that start so")
    args = parser.parse_args(arguments)
    reports = [artifacts.read_json(run / "report.json") for run in args.runs]
    figures = [
        {name: Figure(**figure) for name, figure in report["figures"].items()} for report in reports
    ]
    names = [name for name in figures[0] if name.startswith(tuple(args.figure) or "")]
    rows = [[name, *(_cell(name, one.get(name)) for one in figures)] for name in names]
    rows.append(["wall time", *(_minutes(report) for report in reports)])
    print("\n".join(_table(["figure", *map(str, args.runs)], rows)))
    missed = {
        str(run): [
            f"{v.claim.text} ({v.measured:.3f})"
            for v in judge(CLAIMS, one)
            if v.claim.kind == "bar" and not v.met
        ]
        for run, one in zip(args.runs, figures, strict=True)
    }
    for run, lines in missed.items():
        print(f"\n{run}: " + ("meets every bar" if not lines else "misses " + "; ".join(lines)))
    return 1 if any(missed.values()) else 0


def _cell(name: str, figure: Figure | None) -> str:
    if figure is None:
        return ""
    numbers = (figure.value, figure.low, figure.high)
    if any(part in name for part in NOT_RATIOS):
        value, low, high = (f"{number:.1f}" for number in numbers)
        return f"{value} [{low}, {high}]"
    value, low, high = (f"{100 * number:.1f}" for number in numbers)
    return f"{value}% [{low}, {high}]"


def _minutes(report: dict[str, Any]) -> str:
    return f"{report['timing']['total']['wall_seconds'] / 60:.0f} min"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


if __name__ == "__main__":
    sys.exit(main())
