"""The real TPU compiler on this machine: a tiny model fits, sums add up, too much is an answer."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechlm_jax.cli import main as cli
from speechlm_jax.data.shares import PhaseSpec, rest
from speechlm_jax.errors import EXIT_DOES_NOT_FIT, EXIT_OK, EXIT_USAGE, UserError
from speechlm_jax.experiment.configs import LanguageModelExperiment, RowsData
from speechlm_jax.lm.presets import preset
from speechlm_jax.planner.compile import compile_step, devices
from speechlm_jax.planner.plan import plan_training
from speechlm_jax.planner.roofline import with_recomputation
from speechlm_jax.planner.slices import parse_topology
from speechlm_jax.sharding import MeshConfig, make_mesh
from speechlm_jax.train.loop import TrainConfig
from speechlm_jax.train.optimizer import OptimizerConfig
from speechlm_jax.train.work import Work

pytest.importorskip("libtpu", reason="needs the `tpu` extra")
SLICE = parse_topology("v5e:2x2")
EXPERIMENT = LanguageModelExperiment(
    RowsData("", batch_size=8, phases=(PhaseSpec("all", {"text": rest()}, tokens=10**9),)),
    preset("tiny"),
    TrainConfig(0, optimizer=OptimizerConfig(warmup_steps=1)),
)


@pytest.fixture(scope="module")
def plan():
    return plan_training(EXPERIMENT, SLICE, length=256, vocab_size=1024)


def test_a_tiny_model_fits(plan):
    found = plan.to_json()
    assert found == json.loads(json.dumps(found)) and found["fits"]
    assert found["chips"] == 4 and found["tokens_per_chip"] == 8 * 256 // 4
    assert 0 < found["hbm_bytes"] < found["capacity_bytes"] == SLICE.chip.hbm_bytes
    assert "tpu_custom_call" in plan.compiled.text, "splash attention, not the reference"


def test_parts_add_up_to_what_the_compiler_needs(plan):
    parts = plan.parts
    over_chips = plan.parameters * 4 // 4  # float32; norms lie on every chip
    assert over_chips < parts["weights"] < 1.02 * over_chips
    assert parts["optimizer"] == pytest.approx(2 * parts["weights"], rel=0.01)
    assert parts["batch"] == 2 * 256 * 16 + 2 * 4
    assert sum(parts.values()) == pytest.approx(plan.compiled.hbm_bytes, rel=0.02)


def test_weights_are_gathered_and_gradients_scattered(plan):
    kinds = {one.kind: one for one in plan.collectives}
    assert all(one.network == "ici" for one in plan.collectives)
    gathered = kinds["all-gather"].bytes
    stack = plan.parameters - 1024 * 64
    assert gathered > 2 * 2 * stack, "bfloat16, forward and again"


def test_bounds_are_of_the_slowest(plan):
    found = plan.to_json()
    assert found["step_seconds_bound"] == max(found["bounds_seconds"].values())
    assert found["bounds_seconds"][found["bound"]] == found["step_seconds_bound"]
    assert plan.bounds.dcn == 0
    steps = 10**9 / (8 * 256)
    assert found["days_bound"] == pytest.approx(steps * found["step_seconds_bound"] / 86_400)
    assert with_recomputation(Work(1.0, 0.0, 30.0), head_flops=6.0, remat="full") == 30 + 8
    assert with_recomputation(Work(1.0, 0.0, 30.0), head_flops=6.0, remat="none") == 30


def test_a_program_that_is_too_large_is_an_answer():
    mesh = make_mesh(MeshConfig(), devices=devices(SLICE))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    huge = jax.ShapeDtypeStruct((120_000, 120_000), jnp.float32, sharding=place)
    found = compile_step(jax.jit(lambda x: x @ x @ x, out_shardings=place).lower(huge))
    assert found.text is None and found.hbm_bytes > 120_000**2 * 4 > SLICE.chip.hbm_bytes


def test_the_command(tmp_path, capsys, monkeypatch, plan):
    path = tmp_path / "tiny.py"
    path.write_text(
        "from speechlm_jax.experiment.configs import LanguageModelExperiment, RowsData\n"
        "from speechlm_jax.lm.presets import preset\n"
        "from speechlm_jax.train.loop import TrainConfig\n"
        "def config():\n"
        "    return LanguageModelExperiment(RowsData(''), preset('tiny'), TrainConfig(200))\n",
        encoding="utf-8",
    )
    asked = []

    def planned(experiment, slices, **more):
        asked.append((experiment.train.mesh.replica, slices.name, more))
        return plan

    monkeypatch.setattr("speechlm_jax.planner.plan.plan_training", planned)
    line = ["plan", str(path), "--topology", "v5e:2x2", "--length", "256", "--vocab", "1024"]
    assert cli.main([*line, "--json"]) == EXIT_OK
    assert json.loads(capsys.readouterr().out) == plan.to_json()
    assert cli.main([*line, "--slices", "2"]) == EXIT_OK
    told = capsys.readouterr().out
    assert "fits: needs" in told and "all-gather" in told and "(projection)" in told
    more = {"length": 256, "vocab_size": 1024}
    assert asked == [(1, "v5e:2x2", more), (2, "2 x v5e:2x2", more)]
    too_large = dataclasses.replace(plan.compiled, text=None, hbm_bytes=2**40)
    plan = dataclasses.replace(plan, compiled=too_large, collectives=())
    assert cli.main(line) == EXIT_DOES_NOT_FIT
    assert "does not fit: needs 1024.0 GiB of 15.75 GiB" in capsys.readouterr().out


def test_what_cannot_be_planned_is_one_line(capsys):
    with pytest.raises(UserError, match="9 rows do not divide into 1 microbatches over 4 devices"):
        rows = dataclasses.replace(EXPERIMENT.data, batch_size=9)
        given = dataclasses.replace(EXPERIMENT, data=rows)
        plan_training(given, SLICE, length=256, vocab_size=1024)
    with pytest.raises(UserError, match="knows no such slice"):
        devices(parse_topology("v5e:3x5"))
    tokenizer = ["plan", "configs/speech_tokenizer_digits.py", "--topology", "v5e:2x2"]
    assert cli.main(tokenizer) == EXIT_USAGE
    assert "is not the config of a language model" in capsys.readouterr().err


def test_the_mesh_follows_the_slices():
    two = parse_topology("v5e:2x2", slices=2)
    mesh = make_mesh(MeshConfig(replica=2), devices=devices(two))
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert mesh.shape["replica"] == 2 and (slices[0] == slices[0].flat[0]).all()
    assert set(slices.flat) == {0, 1}
