"""The engine's programs, compiled for absent TPUs: what they hold, read, send and do not copy."""

import jax
import jax.numpy as jnp
import pytest

from speechlm_jax.cli import main as cli
from speechlm_jax.errors import EXIT_USAGE, UserError
from speechlm_jax.nn.language_model import LanguageModelConfig, functional
from speechlm_jax.nn.transformer import TransformerConfig
from speechlm_jax.planner import decode
from speechlm_jax.planner.compile import devices
from speechlm_jax.planner.slices import parse_topology
from speechlm_jax.sharding import MeshConfig, make_mesh

# Two heads of keys a chip, each as wide as the kernel wants it.
STACK = TransformerConfig(num_layers=1, embed=256, heads=8, kv_heads=4, head_dim=128, mlp=512)
MODEL = LanguageModelConfig(256, STACK, tied=False, dtype="bfloat16")
REQUESTS, LENGTH = 8, 4096
SLICES = parse_topology("v5e:2x2")


@pytest.fixture(scope="module")
def plan():
    pytest.importorskip("libtpu", reason="needs the `tpu` extra")
    return decode.plan_decoding(MODEL, SLICES, requests=REQUESTS, length=LENGTH, tensor=2)


def test_parts_and_bound(plan):
    found = plan.to_json()
    assert found["fits"] and found["hbm_bytes"] >= max(plan.parts["cache"], plan.parts["weights"])
    weights = sum(leaf.size for leaf in jax.tree.leaves(functional(MODEL).shapes))
    halves = 2 * weights / 2  # bfloat16, over two chips; norms on both, in float32
    assert halves < plan.parts["weights"] < 1.01 * halves
    held = 2 * STACK.kv_heads * STACK.head_dim * LENGTH * REQUESTS * 2
    assert plan.parts["cache"] == pytest.approx(held / 4, rel=0.01)
    table = 2 * MODEL.vocab_size * STACK.embed / 2  # of which a step reads some rows only
    read = plan.parts["weights"] + plan.parts["cache"] - table
    assert found["bounds_seconds"]["hbm"] == pytest.approx(read / SLICES.chip.hbm_bandwidth)
    assert found["tokens_per_second_bound"] == REQUESTS / found["step_seconds_bound"]


def test_no_program_copies_the_cache(plan):
    """As `kept.at[:, rows, places].set` would: to a layout for the write, and back."""
    assert plan.cache_copies == 0


def test_activations_cross_the_network_and_weights_and_cache_do_not(plan):
    kinds = {one.kind for one in plan.compiled.collectives}
    assert "all-reduce" in kinds
    assert sum(one.bytes for one in plan.compiled.collectives) < 0.1 * plan.parts["weights"]


def test_a_step_attends_by_the_kernel():
    pytest.importorskip("libtpu", reason="needs the `tpu` extra")
    mesh = make_mesh(MeshConfig(tensor=2), devices=devices(SLICES))
    programs = decode.lower(MODEL, mesh, requests=REQUESTS, length=LENGTH)
    assert "tpu_custom_call" in programs.advance.as_text()
    assert jnp.dtype(programs.slots.cache.k[0].dtype) == jnp.bfloat16
    with pytest.raises(UserError, match="--requests: 3 do not divide over 2 groups of 2"):
        decode.plan_decoding(MODEL, SLICES, requests=3, length=LENGTH, tensor=2)


@pytest.mark.slow
def test_one_chip_sends_nothing():
    pytest.importorskip("libtpu", reason="needs the `tpu` extra")
    slices = parse_topology("v6e:1x1")
    plan = decode.plan_decoding(MODEL, slices, requests=REQUESTS, length=LENGTH)
    assert plan.fits and not plan.compiled.collectives and plan.bounds.ici == 0
    assert plan.cache_copies == 0


def test_one_thing_is_asked_at_a_time(capsys):
    line = ["plan", "configs/lm_150m.py", "--topology", "v5e:2x2", "--decode", "--search"]
    assert cli.main(line) == EXIT_USAGE
    assert "not allowed with" in capsys.readouterr().err
    assert cli.main([*line[:-1], "--requests", "0"]) == EXIT_USAGE
    assert "'0' is no whole number of 1 or more" in capsys.readouterr().err
