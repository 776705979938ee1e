"""Charts of recorded plans: memory by part, and days by number of chips. Used by plans.py."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
mpl.rcParams.update({"svg.hashsalt": "plans", "font.size": 9, "axes.spines.top": False})
mpl.rcParams["axes.spines.right"] = False

import matplotlib.pyplot as plt  # noqa: E402

from speechlm_jax.planner.search import SPARE  # noqa: E402
from speechlm_jax.planner.slices import CHIPS, GIB, parse_topology  # noqa: E402

PARTS = ("weights", "optimizer", "batch", "temporaries", "program")
COLORS = ("#31688e", "#6baed6", "#bdbdbd", "#fd8d3c", "#756bb1")
MODELS = {"9b": "9B, 1T tokens", "1b5": "1.5B, 100B tokens", "0b5": "0.5B, 50B tokens"}


def memory(plans: dict[str, dict[str, Any]], path: Path) -> None:
    """Draws a bar for each plan: use of a chip's memory at the step's peak, in % of its memory."""
    figure, axes = plt.subplots(figsize=(7.5, 0.5 + 0.45 * len(plans)))
    names, left = list(plans), np.zeros(len(plans))
    capacities = np.array([plan["capacity_bytes"] for plan in plans.values()])
    for part, color in zip(PARTS, COLORS, strict=True):
        sizes = np.array([plan["parts_bytes"].get(part, 0) for plan in plans.values()])
        if sizes.max() > 0.002 * capacities.max():
            axes.barh(names, 100 * sizes / capacities, left=left, color=color, label=part)
        left += 100 * sizes / capacities
    for y, plan in enumerate(plans.values()):
        text = f" {plan['hbm_bytes'] / GIB:.1f} of {plan['capacity_bytes'] / GIB:.1f} GiB"
        if not plan["fits"]:
            text += ": does not fit"
        at = min(left[y], 118)
        axes.text(at, y, text, va="center", ha="right" if left[y] > 118 else "left", fontsize=8)
    axes.axvline(100, color="black", linewidth=1)
    axes.axvline(100 * (1 - SPARE), color="black", linewidth=0.6, linestyle=":")
    axes.set_xlim(0, 120)
    axes.set_xlabel(f"% of a chip's memory (dotted: {100 * SPARE:.0f}% to spare)")
    axes.invert_yaxis()
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=4, fontsize=8)
    _save(figure, path)


def days(plans: dict[str, dict[str, Any]], published: list[dict[str, Any]], path: Path) -> None:
    """Draws the days that the budget takes by number of chips, with a line for each kind of chip.

    A line is a plan's FLOPs (recomputation included) at the chips' peak. The band goes from the
    best to the least share of such a bound in `published`. Dots are the plans themselves.
    """
    shown = {key: text for key, text in MODELS.items() if any(_of(key, plans))}
    figure, panels = plt.subplots(1, len(shown), figsize=(3.1 * len(shown), 3.4), squeeze=False)
    shares = [row["share"] for row in published]
    for axes, (key, text) in zip(panels[0], shown.items(), strict=True):
        found = list(_of(key, plans))
        first = found[0]
        budget = first["days_bound"] / first["step_seconds_bound"]  # days a second of a step
        flops = first["flops_with_recomputation"]
        chips = np.array([8, 2048])
        for (kind, chip), color in zip(CHIPS.items(), COLORS, strict=False):
            least = budget * flops / chip.peak_flops / chips
            axes.plot(chips, least, color=color, label=kind)
            if shares:
                axes.fill_between(
                    chips, least / max(shares), least / min(shares), color=color, alpha=0.12, lw=0
                )
        for plan in found:
            kind = parse_topology(plan["slices"].split(" x ")[-1]).kind
            color = COLORS[list(CHIPS).index(kind)]
            axes.plot(plan["chips"], plan["days_bound"], "o", color=color, markersize=5)
        axes.set(xscale="log", yscale="log", title=text, xlabel="chips")
        axes.set_xticks([8, 32, 128, 512, 2048], ["8", "32", "128", "512", "2048"])
        axes.minorticks_off()
        axes.grid(True, which="major", linewidth=0.3)
    panels[0][0].set_ylabel("days: least (line),\nat published shares of it (band)")
    panels[0][-1].legend(frameon=False, fontsize=8)
    _save(figure, path)


def _of(key: str, plans: dict[str, dict[str, Any]]) -> Any:
    return (p for name, p in plans.items() if f"_{key}_" in name and p.get("days_bound"))


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
