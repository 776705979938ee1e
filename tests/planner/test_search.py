"""The search against a compiler that is a formula: it must find what trying everything finds."""

import dataclasses
from unittest import mock

import jax
import numpy as np
import pytest

from speechlm_jax import config as configs
from speechlm_jax.errors import UserError
from speechlm_jax.experiment.configs import LanguageModelExperiment, RowsData
from speechlm_jax.lm.presets import preset
from speechlm_jax.planner.compile import Compiled
from speechlm_jax.planner.plan import FIELDS, Plan, make_step
from speechlm_jax.planner.roofline import Bounds
from speechlm_jax.planner.search import (
    MOST_ROWS,
    SPARE,
    Tried,
    best,
    candidates,
    has_spare,
    largest,
    search,
)
from speechlm_jax.planner.slices import parse_topology
from speechlm_jax.sharding import MeshConfig
from speechlm_jax.train.loop import TrainConfig
from speechlm_jax.train.work import FlopCount

pytest.importorskip("libtpu", reason="needs the `tpu` extra")
SLICE = parse_topology("v5e:2x2")
LENGTH = 256
EXPERIMENT = LanguageModelExperiment(
    RowsData("", batch_size=32), preset("tiny", vocab_size=1024), TrainConfig(0)
)
COST = {"none": 1.0, "dots": 1.1, "full": 1.3}
KEPT = {"none": 9.0, "dots": 5.0, "full": 1.0}


class Formula:
    """Memory: a base and so much a row; time: by remat and mesh."""

    def __init__(self, *, base=0.1, row=0.02):
        self.base, self.row, self.asked = base, row, []

    def __call__(self, experiment):
        self.asked.append(experiment)
        mesh, execution = experiment.train.mesh, experiment.model.transformer.execution
        shards = SLICE.chips // (mesh.tensor * mesh.context)
        rows = experiment.data.batch_size / experiment.train.num_microbatches / shards
        kept = (
            KEPT[execution.remat] * (1.2 if execution.saved else 1) / (mesh.tensor * mesh.context)
        )
        share = self.base + self.row * rows * kept
        # slower than any floor, so that the order of candidates matters
        seconds = COST[execution.remat] * (0.95 if execution.saved else 1) + 0.01 * mesh.tensor
        size = int(share * SLICE.chip.hbm_bytes)
        compiled = Compiled(share <= 1, size, 0, 0, None, (), (), 0.0)
        bounds = Bounds(seconds, 0.0, 0.001 * experiment.train.num_microbatches, 0.0)
        return Plan(
            SLICE, LENGTH, experiment.data.batch_size, shards, experiment.train.num_microbatches,
            1, compiled, compiled, {}, FlopCount(), 0.0, bounds, 0,
        )  # fmt: skip


def everything(planner):
    """All candidates with all numbers of microbatches."""
    return [
        Tried((), planner(configs.override(candidate.experiment, [f"train.num_microbatches={n}"])))
        for candidate in candidates(EXPERIMENT, SLICE, length=LENGTH)
        for n in candidate.microbatches()
    ]


@pytest.mark.parametrize("row", [0.001, 0.1, pytest.param(0.8, marks=pytest.mark.slow)])
def test_the_search_finds_what_trying_everything_finds(row):
    formula = Formula(row=row)
    found = best(search(EXPERIMENT, SLICE, formula, length=LENGTH))
    asked = len(formula.asked)
    expected = best(everything(formula))
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert found.seconds_per_token == expected.seconds_per_token
        assert asked < len(formula.asked) - asked, "and compiles less"
        again = Formula(row=row)(configs.override(EXPERIMENT, found.overrides))
        assert again == found.plan, "the overrides say how to ask for it"


def test_what_cannot_be_better_is_not_compiled():
    """Plans as fast as the floor: the first candidate that fits ends the search."""
    first = min(candidates(EXPERIMENT, SLICE, length=LENGTH), key=lambda one: one.seconds_floor)
    formula = Formula()

    def at_the_floor(experiment):
        plan = formula(experiment)
        seconds = first.seconds_floor * plan.rows * plan.length
        return dataclasses.replace(plan, bounds=Bounds(seconds, 0.0, 0.0, 0.0))

    said = []
    tried = search(
        EXPERIMENT, SLICE, at_the_floor, length=LENGTH, report=lambda *what: said.append(what)
    )
    assert {one.overrides[:-1] for one in tried} == {first.overrides}
    assert len(said) == len(tried) + 1 and said[-1][0] == said[-1][1]
    assert "model.transformer.execution.remat=none" in said[0][2]


def test_nothing_fits():
    assert best(search(EXPERIMENT, SLICE, Formula(base=2.0), length=LENGTH)) is None
    assert largest(EXPERIMENT, SLICE, Formula(base=0.93)) is None


@pytest.mark.parametrize("row, rows", [(0.1, 8), (0.0001, MOST_ROWS), (0.5, 1)])
def test_the_most_rows_that_fit(row, rows):
    formula = Formula(row=row)
    full = configs.override(EXPERIMENT, ["train.num_microbatches=2"])
    plan = largest(full, SLICE, formula)
    assert plan is not None and has_spare(plan) and plan.microbatch_rows == 4 * rows
    assert plan.num_microbatches == 2 and plan.rows == 2 * 4 * rows
    assert len(formula.asked) <= 4
    assert (
        Formula(row=row)(configs.override(full, [f"data.batch_size={plan.rows + 8}"])).hbm_share
        > 1 - SPARE
        or rows == MOST_ROWS
    )


CURVES = {
    "concave": lambda n: 0.02 + 0.08 * (n - 0.5) ** 0.7,
    "convex": lambda n: 0.02 + 0.08 * (n - 0.5) ** 1.3,
    "square": lambda n: 0.05 + 0.001 * n + 0.0006 * n * n,
    "step": lambda n: 0.1 if n < 41 else 2.0,
}


@pytest.mark.parametrize("name", CURVES)
def test_memory_that_grows_in_no_line_is_climbed_too(name):
    formula, share = Formula(), CURVES[name]

    def bent(experiment):
        plan = formula(experiment)
        needed = share(plan.microbatch_rows // 4)
        size = int(needed * SLICE.chip.hbm_bytes)
        return dataclasses.replace(
            plan, compiled=dataclasses.replace(plan.compiled, fits=needed <= 1, hbm_bytes=size)
        )

    most = max(n for n in range(1, MOST_ROWS + 1) if share(n) <= 1 - SPARE)
    plan = largest(EXPERIMENT, SLICE, bent)
    assert plan is not None and plan.microbatch_rows == 4 * most
    assert len(formula.asked) <= 10


def test_a_broken_config_is_one_line_and_nothing_is_compiled():
    for override, line in {
        "train.mesh.fsdp=3": "does not lay out 4 devices",
        "data.batch_size=9": "9 rows do not divide into 1 microbatches over 4 devices",
    }.items():
        formula, broken = Formula(), configs.override(EXPERIMENT, [override])
        with pytest.raises(UserError, match=line):
            search(broken, SLICE, formula, length=LENGTH)
        assert not formula.asked


def test_a_way_that_only_a_kernel_refuses_is_left_out():
    """0.5B has 14 heads, which `tensor=4` does not divide: its sizes do."""
    model = preset("0.5B", vocab_size=1024)
    small = dataclasses.replace(model.transformer, num_layers=1)
    given = dataclasses.replace(EXPERIMENT, model=dataclasses.replace(model, transformer=small))
    formula = Formula()

    def lowered(experiment):
        program = make_step(experiment, SLICE)
        rows = experiment.data.batch_size
        batch = {name: jax.ShapeDtypeStruct((rows, LENGTH), kind) for name, kind in FIELDS.items()}
        program.lower(batch | {"task": jax.ShapeDtypeStruct((rows,), np.int32)})
        return formula(experiment)

    with pytest.raises(UserError, match=r"mesh.tensor: 14 heads do not divide over 4 devices"):
        lowered(configs.override(given, ["train.mesh.tensor=4"]))
    refused = mock.Mock(
        side_effect=lambda x: lowered(x) if x.train.mesh.tensor == 4 else formula(x)
    )
    tried = search(given, SLICE, refused, length=LENGTH)
    meshes = {one.overrides[0] for one in tried}
    assert "train.mesh.tensor=2" in meshes and "train.mesh.tensor=4" not in meshes
    assert any(call.args[0].train.mesh.tensor == 4 for call in refused.call_args_list)


def test_meshes_that_the_model_divides_over():
    own = dataclasses.replace(EXPERIMENT, train=TrainConfig(0, mesh=MeshConfig(fsdp=-1)))
    meshes = {
        (candidate.experiment.train.mesh.tensor, candidate.experiment.train.mesh.context)
        for candidate in candidates(own, SLICE, length=LENGTH)
    }
    assert meshes == {(1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (1, 4)}
    odd = preset("tiny", vocab_size=1023)
    meshes = [
        candidate.experiment.train.mesh
        for candidate in candidates(dataclasses.replace(own, model=odd), SLICE, length=LENGTH)
    ]
    assert {mesh.tensor for mesh in meshes} == {1}, "1023 ids do not divide over tensor"
