"""Searches for the best microbatches, remat and mesh on a slice, or for the most rows that fit.

The batch of the config stays, because it belongs to the recipe; the search varies how a slice
processes it. Candidates are compiled in the order of the least time that their arithmetic needs;
those that cannot beat the best one found are left out, and so are those whose saved activations
alone do not fit.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from speechlm_jax import config as configs
from speechlm_jax.errors import UserError
from speechlm_jax.experiment.configs import Experiment, LanguageModelExperiment
from speechlm_jax.nn.transformer import TransformerConfig
from speechlm_jax.planner.compile import devices
from speechlm_jax.planner.plan import Plan, check, make_stage
from speechlm_jax.planner.roofline import recomputed
from speechlm_jax.planner.slices import Slices
from speechlm_jax.planner.tokenizer import TokenizerPlan
from speechlm_jax.sharding import make_mesh, param_shardings, row_shards

SPARE = 0.08  # fraction of a chip's memory, for what the compiler does not see
ROUNDING = 1e-6  # relative, between two ways to add up the same FLOPs
MOST_ROWS = 64  # at a time, for each part into which the mesh splits rows
REMATS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("none", ()),
    ("dots", ()),
    ("full", ("qkv",)),
    ("full", ()),
)
SPLITS = ((1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (1, 4))  # tensor, context
Planner = Callable[[LanguageModelExperiment], Plan]
AnyPlan = TypeVar("AnyPlan", Plan, TokenizerPlan)
Report = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A mesh and a remat policy; the number of microbatches is open.

    Attributes:
      experiment: the experiment with both.
      overrides: overrides that set them on the command line.
      shards: number of parts into which the mesh splits rows.
      seconds_floor: seconds of arithmetic per token at the chips' peak, over all chips.
    """

    experiment: LanguageModelExperiment
    overrides: tuple[str, ...]
    shards: int
    seconds_floor: float

    def microbatches(self) -> list[int]:
        """Returns numbers of microbatches that divide the batch, fewest rows at a time first."""
        whole, rest = divmod(self.experiment.data.batch_size, self.shards)
        return [] if rest else [n for n in range(whole, 0, -1) if whole % n == 0]


@dataclasses.dataclass(frozen=True)
class Tried:
    """A compiled candidate, and the overrides that make it from the config."""

    overrides: tuple[str, ...]
    plan: Plan

    @property
    def seconds_per_token(self) -> float:
        """Seconds to rank by: the mean of a step that hides all it can and one that hides nothing.

        The least time alone would count any traffic that arithmetic could hide as free.
        """
        plan = self.plan
        added = sum(dataclasses.astuple(plan.bounds)) / (plan.rows * plan.length)
        return (plan.seconds_per_token + added) / 2

    def to_json(self) -> dict[str, Any]:
        """Returns its row in a table of the search."""
        return {
            "overrides": list(self.overrides),
            "fits": self.plan.fits,
            "has_spare": has_spare(self.plan),
            "hbm_share": round(self.plan.hbm_share, 4),
            "seconds_per_token_bound": self.plan.seconds_per_token if self.plan.fits else None,
            "seconds_per_token_ranked": self.seconds_per_token if self.plan.fits else None,
        }


def has_spare(plan: Plan | TokenizerPlan) -> bool:
    """Returns True if a plan fits and leaves `SPARE` of the memory free."""
    return plan.fits and plan.hbm_share <= 1 - SPARE


def best(tried: Sequence[Tried]) -> Tried | None:
    """Returns the fastest candidate that fits with memory to spare; None if there is none."""
    good = [one for one in tried if has_spare(one.plan)]
    return min(good, key=lambda one: one.seconds_per_token, default=None)


def search(
    experiment: LanguageModelExperiment,
    slices: Slices,
    planner: Planner,
    *,
    length: int,
    report: Report = lambda done, total, text: None,
) -> list[Tried]:
    """Compiles candidates until no other can be better than the best that fits.

    Args:
      experiment: the experiment; its model has the size of its vocabulary.
      planner: `plan_training` for these slices and this length.
      report: called with the number of candidates done, that of all, and the one compiled now.

    Raises:
      UserError: the config as it is does not divide over its mesh.
    """
    check(experiment, slices)
    found = sorted(candidates(experiment, slices, length=length), key=lambda one: one.seconds_floor)
    tried: list[Tried] = []
    for number, candidate in enumerate(found):
        good = best(tried)
        if good is not None and good.seconds_per_token <= candidate.seconds_floor * (1 + ROUNDING):
            break
        if _kept_bytes(candidate.experiment, length) > slices.chip.hbm_bytes:
            continue

        def compiled(
            microbatches: int, candidate: Candidate = candidate, number: int = number
        ) -> Plan:
            more = f"train.num_microbatches={microbatches}"
            report(number, len(found), " ".join([*candidate.overrides, more]))
            plan = planner(configs.override(candidate.experiment, [more]))
            tried.append(Tried((*candidate.overrides, more), plan))
            return plan

        # sizes that only a kernel refuses raise when it is lowered, before compiling
        with contextlib.suppress(UserError):
            _climb(compiled, candidate.microbatches(), rows=lambda n: 1 / n)
    report(len(found), len(found), "")
    return tried


def largest(
    experiment: Experiment,
    slices: Slices,
    planner: Callable[[Any], AnyPlan],
    *,
    field: str = "data.batch_size",
) -> AnyPlan | None:
    """Returns the plan with the most rows at a time that fit; None if not even one row does.

    Args:
      field: field of the experiment that sets the rows of a batch.
    """
    shards = row_shards(make_mesh(experiment.train.mesh, devices=devices(slices)))

    def compiled(rows: int) -> AnyPlan:
        batch = rows * shards * experiment.train.num_microbatches
        return planner(configs.override(experiment, [f"{field}={batch}"]))

    return _climb(compiled, range(1, MOST_ROWS + 1), rows=float)


def candidates(
    experiment: LanguageModelExperiment, slices: Slices, *, length: int
) -> Iterator[Candidate]:
    """Yields every mesh that the model divides over, with every remat; the simplest mesh first."""
    stage, chips = make_stage(experiment), devices(slices)
    shapes = jax.eval_shape(lambda: stage.init(jax.random.key(0)))[0]
    assert stage.work is not None
    flops = stage.work({"segments": np.ones((1, length), np.int32)}).flops_causal / length
    for tensor, context in SPLITS:
        if slices.chips_a_slice % (tensor * context) or length % context:
            continue
        on = (f"train.mesh.tensor={tensor}", f"train.mesh.context={context}")
        made = configs.override(experiment, on)
        try:
            mesh = make_mesh(made.train.mesh, devices=chips)
            param_shardings(shapes, stage.axes, mesh=mesh)
        except UserError:
            continue  # does not divide
        for remat, saved in REMATS:
            overrides = (
                *on,
                f"model.transformer.execution.remat={remat}",
                f"model.transformer.execution.saved={json.dumps(saved)}",
            )
            made = configs.override(experiment, overrides)
            needed = flops + recomputed(made.model.transformer, length)
            peak = slices.chips * slices.chip.peak_flops
            yield Candidate(made, overrides, row_shards(mesh), needed / peak)


def _climb(
    compiled: Callable[[int], AnyPlan], choices: Sequence[int], *, rows: Callable[[int], float]
) -> AnyPlan | None:
    """Returns the plan of the last choice that fits; their memory grows, about linearly in `rows`.

    The first two are compiled; the line through them predicts the last that fits. The range that is
    then open, between the last known to fit and the first known not to, is cut in turn by the line
    through these two and in half.
    """
    found: AnyPlan | None = None
    points: list[tuple[float, float]] = []  # rows and memory shares of those that fit
    unfit: tuple[float, float] | None = None
    low, high, turn = 0, len(choices), 0  # the open range
    while low < high:
        at = low
        if len(points) > 1:
            line = (points[-1], unfit) if unfit else (points[-2], points[-1])
            at = _last_below(line, choices[low:high], rows) + low
            if unfit:
                turn += 1
                at = at if turn % 2 else (low + high) // 2
        plan = compiled(choices[at])
        point = (rows(choices[at]), plan.hbm_share)
        if has_spare(plan):
            found, low, points = plan, at + 1, [*points, point]
        else:
            high, unfit = at, point
    return found


def _last_below(
    line: tuple[tuple[float, float], tuple[float, float]],
    choices: Sequence[int],
    rows: Callable[[int], float],
) -> int:
    """Returns the index of the last choice that fits by a line through two points, or 0."""
    (x0, y0), (x1, y1) = line
    slope = max((y1 - y0) / (x1 - x0), 1e-9)
    fits = [y1 + slope * (rows(n) - x1) <= 1 - SPARE for n in choices]
    return max(sum(fits) - 1, 0)


def _kept_bytes(experiment: LanguageModelExperiment, length: int) -> float:
    """Returns a lower bound of the bytes of a row's activations that a chip keeps, in bfloat16."""
    stack, mesh = experiment.model.transformer, experiment.train.mesh
    whole, split = _kept_values(stack)
    return 2 * stack.num_layers * length / mesh.context * (whole + split / mesh.tensor)


def _kept_values(stack: TransformerConfig) -> tuple[int, int]:
    """Returns kept values per block and position: those not split, and those `tensor` splits."""
    width, kv_width = stack.heads * stack.head_dim, stack.kv_heads * stack.head_dim
    if stack.execution.remat == "full":
        return stack.embed, (width + 2 * kv_width) if "qkv" in stack.execution.saved else 0
    return 2 * stack.embed, width + 2 * kv_width + 2 * stack.mlp
