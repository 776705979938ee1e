"""The real TPU compiler on this machine: a tiny model fits, sums add up, too much is an answer."""

import dataclasses
import functools
import json
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechlm_jax.cli import main as cli
from speechlm_jax.data.shares import PhaseSpec, rest
from speechlm_jax.errors import EXIT_DOES_NOT_FIT, EXIT_OK, EXIT_USAGE, UserError
from speechlm_jax.experiment.configs import LanguageModelExperiment, RowsData
from speechlm_jax.lm.presets import preset
from speechlm_jax.nn.attention import whole
from speechlm_jax.nn.param import Functional
from speechlm_jax.nn.transformer import ExecutionConfig, Transformer, TransformerConfig
from speechlm_jax.planner.compile import _needed, compile_program, devices
from speechlm_jax.planner.plan import FIELDS, make_step, plan_training, with_vocab
from speechlm_jax.planner.roofline import recomputed
from speechlm_jax.planner.search import Tried
from speechlm_jax.planner.slices import parse_topology
from speechlm_jax.sharding import MeshConfig, make_mesh
from speechlm_jax.train.loop import TrainConfig
from speechlm_jax.train.optimizer import OptimizerConfig

pytest.importorskip("libtpu", reason="needs the `tpu` extra")
SLICE, ONE = parse_topology("v5e:2x2"), parse_topology("v5e:1x1")
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


def test_an_evaluation_has_to_fit_beside_the_whole_state(plan):
    """The optimizer's state lies there too, though no evaluation reads it."""
    found, held = plan.to_json(), plan.parts["weights"] + plan.parts["optimizer"]
    assert held < found["evaluation_hbm_bytes"] <= found["step_hbm_bytes"] == found["hbm_bytes"]
    assert plan.evaluation.temporary_bytes < plan.compiled.temporary_bytes
    larger = dataclasses.replace(plan.evaluation, fits=False, hbm_bytes=2**40)
    too_large = dataclasses.replace(plan, evaluation=larger).to_json()
    assert not too_large["fits"] and too_large["hbm_bytes"] == 2**40
    assert too_large["hbm_share"] > 1 and too_large["step_hbm_bytes"] == found["hbm_bytes"]


def test_kernels_are_of_the_target():
    program = make_step(with_vocab(EXPERIMENT, 1024), SLICE)
    batch = {name: jax.ShapeDtypeStruct((8, 256), kind) for name, kind in FIELDS.items()}
    batch["task"] = jax.ShapeDtypeStruct((8,), np.int32)
    assert "tpu_custom_call" in program.lower(batch).as_text(), "splash attention"


def test_parts_add_up_to_what_the_compiler_needs(plan):
    parts = plan.parts
    over_chips = plan.parameters * 4 // 4  # float32; norms lie on every chip
    assert over_chips < parts["weights"] < 1.02 * over_chips
    assert parts["optimizer"] == pytest.approx(2 * parts["weights"], rel=0.01)
    assert parts["batch"] == 2 * 256 * 16 + 2 * 4
    assert sum(parts.values()) == pytest.approx(plan.compiled.hbm_bytes, rel=0.02)
    assert min(parts.values()) > 0


def test_weights_are_gathered_and_gradients_scattered(plan):
    kinds = {one.kind: one for one in plan.compiled.collectives}
    assert all(one.network == "ici" for one in plan.compiled.collectives)
    gathered = kinds["all-gather"].bytes
    stack = plan.parameters - 1024 * 64
    assert gathered > 2 * 2 * stack, "bfloat16, forward and again"


def test_bounds_are_of_the_slowest(plan):
    found = plan.to_json()
    assert found["step_seconds_bound"] == max(found["bounds_seconds"].values())
    assert found["bounds_seconds"][found["bound"]] == found["step_seconds_bound"]
    assert plan.bounds.dcn == 0
    moved = 2 * (plan.parts["weights"] + plan.parts["optimizer"])
    gathered = 3 * 2 * plan.parameters  # forward, again, backward, in bfloat16
    assert plan.bounds.hbm == (moved + gathered) / SLICE.chip.hbm_bandwidth
    steps = 10**9 / (8 * 256)
    assert found["days_bound"] == pytest.approx(steps * found["step_seconds_bound"] / 86_400)


REMATS = {"none": {}, "dots": {"remat": "dots"}, "full": {"remat": "full"}}
REMATS["saved"] = {"remat": "full", "saved": ("qkv",)}


@functools.cache
def counted(name):
    """FLOPs of the gradient of blocks that are mostly products, on a CPU; of what is made again."""
    batch, length, layers = 4, 16, 3
    stack = TransformerConfig(
        layers,
        embed=256,
        heads=4,
        kv_heads=2,
        head_dim=64,
        mlp=1024,
        execution=ExecutionConfig(**REMATS[name]),
    )
    model = Functional(lambda rngs: Transformer(stack, rngs=rngs))
    x, layout = jnp.ones((batch, length, 256)), whole(jnp.full(batch, length), length)
    lowered = jax.jit(jax.grad(lambda params: jnp.sum(model.bind(params)(x, layout) ** 2)))
    costs = lowered.lower(model.shapes).compile().cost_analysis()
    # a loop's body counts once
    return costs["flops"], batch * length * recomputed(stack, length) / layers


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "name", ["full", pytest.param("dots", marks=SLOW), pytest.param("saved", marks=SLOW)]
)
def test_what_is_made_again_is_what_the_compiler_counts(name):
    (plain, nothing), (again, expected) = counted("none"), counted(name)
    assert nothing == 0 and again - plain == pytest.approx(expected, rel=0.05, abs=0.01 * plain)


def test_a_program_that_is_too_large_is_an_answer():
    mesh = make_mesh(MeshConfig(), devices=devices(SLICE))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    huge = jax.ShapeDtypeStruct((120_000, 120_000), jnp.float32, sharding=place)
    lowered = jax.jit(lambda x: x @ x @ x, out_shardings=place).lower(huge)
    found = compile_program(lowered, SLICE, argument_bytes=120_000**2 * 4)
    assert not found.fits and found.hbm_bytes > 120_000**2 * 4 > SLICE.chip.hbm_bytes


def test_the_fullest_moment_is_counted_once():
    """What goes in and what comes out are there together; two products one after the other not."""
    place = jax.sharding.SingleDeviceSharding(devices(ONE)[0])
    # large beside the program itself, which takes 1 MiB with libtpu 0.0.52
    x = jax.ShapeDtypeStruct((2048, 2048), jnp.float32, sharding=place)
    size = 2048**2 * 4

    def needs(function):
        return compile_program(jax.jit(function).lower(x), ONE, argument_bytes=size).hbm_bytes

    assert 2 * size < needs(lambda x: x * 2) < 2.1 * size
    chain = needs(lambda x: jnp.sin(jnp.sin(jnp.sin(x @ x) @ x) @ x))
    assert 3 * size < chain < 4.4 * size, "not one array for each of four products"


def test_the_compilers_complaints_are_read():
    whole = "Ran out of memory in memory space hbm. Used 74.90G of 31.25G hbm. Exceeded by 43.65G"
    rest = "the total memory required for HLO temporaries (40.50G) exceeds available HBM (31.25G)."
    assert _needed(whole, 2**30) == int(74.9 * 2**30)
    assert _needed(rest, 2**30) == int(41.5 * 2**30)
    assert _needed("INTERNAL: something else", 2**30) is None


def test_what_was_compiled_is_kept(tmp_path, monkeypatch):
    place = jax.sharding.SingleDeviceSharding(devices(ONE)[0])
    x = jax.ShapeDtypeStruct((256, 256), jnp.float32, sharding=place)
    lowered = jax.jit(lambda x: x @ x).lower(x)
    found = compile_program(lowered, SLICE, argument_bytes=2**18, keep=tmp_path)
    monkeypatch.setattr("speechlm_jax.planner.compile._compile", None)  # no second time
    assert compile_program(lowered, SLICE, argument_bytes=2**18, keep=tmp_path) == found
    with pytest.raises(TypeError):
        other = jax.jit(lambda x: x @ x + 1).lower(x)
        compile_program(other, SLICE, argument_bytes=2**18, keep=tmp_path)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_something=1")
    with pytest.raises(TypeError):
        compile_program(lowered, SLICE, argument_bytes=2**18, keep=tmp_path)
    monkeypatch.delenv("LIBTPU_INIT_ARGS")
    (file,) = tmp_path.iterdir()
    file.write_text("{", encoding="utf-8")
    with pytest.raises(TypeError):
        compile_program(lowered, SLICE, argument_bytes=2**18, keep=tmp_path)
    monkeypatch.undo()
    again = compile_program(lowered, SLICE, argument_bytes=2**18, keep=file)  # no folder
    assert dataclasses.replace(again, seconds=found.seconds) == found


@pytest.mark.slow
def test_between_slices_each_chip_sends_its_part():
    """Two slices of four chips: gradients cross once, in parts; no whole matrix does."""
    two = parse_topology("v5e:2x2", slices=2)
    mesh = dataclasses.replace(EXPERIMENT.train, mesh=MeshConfig(replica=2))
    plan = plan_training(
        dataclasses.replace(EXPERIMENT, train=mesh), two, length=256, vocab_size=8192
    )
    sent = sum(one.wire_bytes for one in plan.compiled.collectives if one.network == "dcn")
    parts = plan.parameters // 4
    # the table's gradient in bfloat16, as it is read, and in float32, as the output layer
    assert 2 * parts < sent < 1.1 * (2 + 4) * parts
    assert plan.bounds.dcn == pytest.approx(sent / two.chip.dcn_bandwidth)


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

    monkeypatch.setattr("speechlm_jax.cli.plan.planning.plan_training", planned)
    line = ["plan", str(path), "--topology", "v5e:2x2", "--length", "256", "--vocab", "1024"]
    line += ["--cache", str(tmp_path)]
    assert cli.main([*line, "--json"]) == EXIT_OK
    assert json.loads(capsys.readouterr().out) == plan.to_json()
    assert cli.main([*line, "--slices", "2"]) == EXIT_OK
    told = capsys.readouterr().out
    assert "fits: needs" in told and "all-gather" in told and "(projection)" in told
    more = {"length": 256, "vocab_size": 1024, "keep": tmp_path}
    assert asked == [(1, "v5e:2x2", more), (2, "2 x v5e:2x2", more)]
    tried = [Tried(("train.mesh.tensor=1", 'model.transformer.execution.saved=["qkv"]'), plan)]
    monkeypatch.setattr("speechlm_jax.cli.plan.searching.search", lambda *_, **__: tried)
    assert (
        cli.main([*line, "--slices", "2", "--search", "z_loss=0.5", "train.mesh.tensor=4"])
        == EXIT_OK
    )
    (best,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("best: ")]
    overrides = shlex.split(best)[1:]
    assert overrides == ["train.mesh.replica=2", "z_loss=0.5", *tried[0].overrides]
    too_large = dataclasses.replace(plan.compiled, fits=False, hbm_bytes=2**40, collectives=())
    plan = dataclasses.replace(plan, compiled=too_large)
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
    assert cli.main([*tokenizer, "--search"]) == EXIT_USAGE
    assert "--search: is for language models; configs/speech_tok" in capsys.readouterr().err


@pytest.mark.parametrize("topology", ["v4:4x4x4", "v5e:4x8", "v5p:4x4x4", "v6e:8x8"])
@pytest.mark.parametrize("number", [1, 2])
def test_chips_that_share_a_layer_are_close(topology, number):
    slices = parse_topology(topology, slices=number)
    chips = devices(slices)
    for sizes in ({"tensor": 2}, {"context": 2}, {"tensor": 2, "context": 2}, {"tensor": 4}):
        mesh = make_mesh(MeshConfig(replica=number, **sizes), devices=chips)
        assert {*mesh.devices.flat} == {*chips}
        for axis in sizes:
            along = np.moveaxis(mesh.devices, mesh.axis_names.index(axis), -1)
            for one, other in along[..., :2].reshape(-1, 2):
                apart = [
                    min(abs(a - b), side - abs(a - b)) if side else 0
                    for a, b, side in zip(one.coords, other.coords, slices.shape, strict=False)
                ]
                assert sum(apart) <= 2
                assert getattr(one, "slice_index", 0) == getattr(other, "slice_index", 0)


def test_the_mesh_follows_the_slices():
    two = parse_topology("v5e:2x2", slices=2)
    mesh = make_mesh(MeshConfig(replica=2), devices=devices(two))
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert mesh.shape["replica"] == 2 and (slices[0] == slices[0].flat[0]).all()
    assert set(slices.flat) == {0, 1}
