"""Plans of the production configs: docs/plans/*.json, and the page docs/plans/README.md.

    python benchmarks/plans.py                  # all, some minutes each on two cores
    python benchmarks/plans.py --only v6e       # plans whose file name contains this
    python benchmarks/plans.py --table          # only the page and the charts

Runs `speechlm plan ... --json` for each, one after the other. Exit code 1 if a plan fails or is
missing, or if one that should fit does not fit with 8% of a chip's memory to spare.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import plan_pictures

from speechlm_jax.errors import EXIT_DOES_NOT_FIT, EXIT_OK
from speechlm_jax.planner.search import SPARE
from speechlm_jax.planner.slices import GIB

ROOT = Path(__file__).resolve().parents[1]
PLANS = ROOT / "docs/plans"
PUBLISHED = PLANS / "published.json"
# File name: arguments of `speechlm plan`.
TRAINING = {
    "lm_9b_v5p-4x4x4": "configs/lm_9b_paper.py --topology v5p:4x4x4 --largest",
    "lm_9b_v5p-4x4x4-dots": (
        "configs/lm_9b_paper.py model.transformer.execution.remat=dots --topology v5p:4x4x4"
    ),
    "lm_9b_v6e-8x8": "configs/lm_9b_paper.py --topology v6e:8x8 --largest",
    "lm_9b_v6e-8x8-2": (
        "configs/lm_9b_paper.py train.num_microbatches=4 --topology v6e:8x8 --slices 2"
    ),
    "lm_9b_v5e-2x2": "configs/lm_9b_paper.py train.num_microbatches=256 --topology v5e:2x2",
    "lm_1b5_v5e-4x8": "configs/lm_1b5.py --topology v5e:4x8 --length 4096 --largest",
    "lm_0b5_v5e-4x4": "configs/lm_0b5.py --topology v5e:4x4 --length 4096 --largest",
}
DECODING = {
    "decode_9b_v6e-1x1": "configs/lm_9b_paper.py --topology v6e:1x1 --decode --requests 8",
    "decode_9b_v5e-2x4": "configs/lm_9b_paper.py --topology v5e:2x4 --decode --requests 64",
    "decode_9b_v5p-2x2x1": "configs/lm_9b_paper.py --topology v5p:2x2x1 --decode --requests 256",
    "decode_1b5_v5e-1x1": "configs/lm_1b5.py --topology v5e:1x1 --decode --requests 16",
    "decode_1b5_v5e-2x4": "configs/lm_1b5.py --topology v5e:2x4 --decode --requests 256",
    "decode_1b5_v6e-2x4": "configs/lm_1b5.py --topology v6e:2x4 --decode --requests 256",
}
SEARCHED = {
    "search_1b5_v5e-4x8": "configs/lm_1b5.py --topology v5e:4x8 --length 4096 --search",
}
TOO_SMALL = {"lm_9b_v5e-2x2"}  # recorded as an example that does not fit
HEAD = """\
# Plans

What the real TPU compiler says of the production configs, compiled on a machine without a TPU;
`python benchmarks/plans.py` writes this page and the JSON files beside it. Memory is the compiler's
word for a step's fullest moment. Seconds, tokens and days are bounds, what the slice could do at
best, and no measurement: nothing here was run on a TPU. What others measured reaches a part of such
bounds (below).

"""
DECODE_HEAD = """
## Generation

The engine's two programs: one step of `advance` adds an id to each request; `read` takes up to 512
ids of some prompts in, and counts for memory only. Weights and cache are in bfloat16, with room for
8,192 ids a request; time is that of a step with a full cache.

"""
SEARCH_HEAD = """
## Searched

`speechlm plan ... --search` ranks by the mean of the least time and the time of a step that hides
nothing. What it compiled:

"""
PUBLISHED_HEAD = """
## Against what others measured

`python benchmarks/published.py`: the speed that somebody published, and the bounds of our training
step for the same model, slice and row length: as compiled, with every block made again in the
backward pass, and as if nothing were. Their recipes differ (batch, what is kept or offloaded), so
the share says how far from the bounds real steps are, not how fast ours would be.

"""


def memory(plan: dict[str, Any]) -> str:
    """Returns the use of a chip's memory, as text."""
    share = f"{plan['hbm_bytes'] / GIB:.1f} of {plan['capacity_bytes'] / GIB:.2f} GiB"
    return (
        f"{share} ({100 * plan['hbm_share']:.0f}%)"
        if plan["fits"]
        else f"**does not fit**: {share}"
    )


def training_row(name: str, plan: dict[str, Any]) -> tuple[str, ...]:
    """Returns a row of the first table."""
    gib = {part: size / GIB for part, size in plan["parts_bytes"].items()}
    tokens = plan["tokens_per_chip"] // plan["num_microbatches"]
    most = plan.get("largest_microbatch_rows")
    largest = "" if most is None else f"{most / plan['chips']:g} x {plan['length']:,}"
    start = (
        f"[`{name}`]({name}.json)", str(plan["chips"]), f"{tokens:,}", memory(plan),
        ", ".join(f"{gib[p]:.1f}" for p in ("weights", "optimizer", "temporaries")), largest,
    )  # fmt: skip
    if not plan["fits"]:
        return *start, "", "", ""
    days = "" if plan["days_bound"] is None else f"{plan['days_bound']:.1f}"
    seconds = f"{plan['step_seconds_bound']:.2f} s, {plan['bound']}"
    return *start, seconds, f"{plan['tokens_per_second_bound']:,.0f}", days


def decoding_row(name: str, plan: dict[str, Any]) -> tuple[str, ...]:
    """Returns a row of the second table."""
    gib = {part: size / GIB for part, size in plan["parts_bytes"].items()}
    start = (
        f"[`{name}`]({name}.json)", str(plan["chips"]), str(plan["tensor"]), str(plan["requests"]),
        memory(plan), ", ".join(f"{gib[part]:.1f}" for part in ("weights", "cache", "temporaries")),
    )  # fmt: skip
    if not plan["fits"]:
        return *start, "", ""
    seconds = f"{1000 * plan['step_seconds_bound']:.1f} ms, {plan['bound']}"
    return *start, seconds, f"{plan['tokens_per_second_bound']:,.0f}"


def search_rows(plan: dict[str, Any]) -> list[tuple[str, ...]]:
    """Returns the rows of the third table."""
    rows = []
    for one in plan["tried"]:
        words = " ".join(one["overrides"])
        bound, ranked = one["seconds_per_token_bound"], one["seconds_per_token_ranked"]
        figures = ("", "") if bound is None else (f"{1 / bound:,.0f}", f"{1 / ranked:,.0f}")
        count = len(one["overrides"])
        best = " (best)" if one["overrides"] == plan["overrides"][-count:] else ""
        fits = "" if one["has_spare"] else ", too much" if one["fits"] else ", does not fit"
        rows.append((f"`{words}`{best}", f"{100 * one['hbm_share']:.0f}%{fits}", *figures))
    return rows


def published_row(row: dict[str, Any]) -> tuple[str, ...]:
    """Returns a row of the last table."""
    measured = row["tokens_per_second_per_chip"]
    return (
        row["model"], row["slices_name"], f"{row['length']:,}", f"{measured:,.0f}",
        f"{row['bound']:,} ({100 * row['share']:.0f}%)",
        f"{row['bound_nothing_made_again']:,} ({100 * row['share_nothing_made_again']:.0f}%)",
        row["source"],
    )  # fmt: skip


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page(plans: dict[str, dict[str, Any]], published: list[dict[str, Any]]) -> str:
    """Returns the text of docs/plans/README.md."""

    def rows(asked: dict[str, str], line: Callable[..., tuple[str, ...]]) -> list[tuple[str, ...]]:
        return [line(name, plans[name]) for name in asked if name in plans]

    parts = [
        HEAD,
        table(
            ("plan", "chips", "tokens a chip and microbatch", "memory a chip",
             "weights, optimizer, temporaries (GiB)", "most rows a chip that fit",
             "least time of a step", "tokens a second at most", "days at least"),
            rows(TRAINING, training_row),
        ),
        "\n![Memory of a chip by what it holds](memory.svg)\n",
        "\n![Days for the budget by the number of chips](days.svg)\n",
        DECODE_HEAD,
        table(
            ("plan", "chips", "chips a request", "requests at a time", "memory a chip",
             "weights, cache, temporaries (GiB)", "least time of a step", "ids a second at most"),
            rows(DECODING, decoding_row),
        ),
    ]  # fmt: skip
    for name in SEARCHED:
        if name in plans:
            asked = f"[`{name}`]({name}.json): `speechlm plan {SEARCHED[name]}`\n\n"
            columns = ("way", "memory", "tokens a second at most", "ranked by")
            parts += [SEARCH_HEAD, asked, table(columns, search_rows(plans[name]))]
    if published:
        columns = (
            "model", "slice", "row", "measured, tokens a second and chip", "our bound (share)",
            "nothing made again (share)", "source",
        )  # fmt: skip
        parts += [PUBLISHED_HEAD, table(columns, [published_row(row) for row in published])]
    return "".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the plans and writes the page and the charts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="part of a file name")
    parser.add_argument("--table", action="store_true", help="plan nothing")
    args = parser.parse_args(arguments)
    PLANS.mkdir(parents=True, exist_ok=True)
    recorded, failed = TRAINING | DECODING | SEARCHED, []
    for name, asked in recorded.items():
        if args.only in name and not args.table:
            line = ["plan", *asked.split(), "--json", "--out", str(PLANS / f"{name}.json")]
            command = [sys.executable, "-m", "speechlm_jax.cli.main", *line]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
            print(json.dumps({"plan": name, "exit_code": done.returncode}), flush=True)
            failed += [name] if done.returncode not in (EXIT_OK, EXIT_DOES_NOT_FIT) else []
    files = {name: PLANS / f"{name}.json" for name in recorded}
    plans = {
        name: json.loads(file.read_text(encoding="utf-8"))
        for name, file in files.items()
        if file.is_file()
    }
    published = json.loads(PUBLISHED.read_text(encoding="utf-8")) if PUBLISHED.is_file() else []
    (PLANS / "README.md").write_text(page(plans, published), encoding="utf-8")
    training = {name: plans[name] for name in TRAINING if name in plans}
    plan_pictures.memory(training, PLANS / "memory.svg")
    plan_pictures.days(training, published, PLANS / "days.svg")
    good = {name: plan["fits"] and plan["hbm_share"] <= 1 - SPARE for name, plan in plans.items()}
    wrong = [name for name in plans if good[name] == (name in TOO_SMALL)]
    return int(bool(wrong or failed or recorded.keys() - plans))


if __name__ == "__main__":
    sys.exit(main())
