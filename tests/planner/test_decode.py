"""A step of generation: it says what `generate` says, and its parts are what they must be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechlm_jax.cli import main as cli
from speechlm_jax.errors import EXIT_USAGE, UserError
from speechlm_jax.lm.presets import preset
from speechlm_jax.nn.decode import generate
from speechlm_jax.nn.language_model import functional
from speechlm_jax.nn.transformer import Cache
from speechlm_jax.planner.decode import decode_step, plan_decoding
from speechlm_jax.planner.slices import parse_topology

MODEL = preset("tiny", vocab_size=1024)


def test_the_step_says_what_generation_says():
    config = preset("tiny", vocab_size=64, dtype="float32", remat="none")
    stack = dataclasses.replace(config.transformer, num_layers=1)
    config = dataclasses.replace(config, transformer=stack)
    made, steps = functional(config), 5
    params, _ = made.init(jax.random.key(0))
    prompts = jnp.array(np.random.default_rng(0).integers(0, 64, (3, 4)))
    lengths = jnp.full(3, 4)
    generated = jax.jit(lambda params: generate(
        made.bind(params), prompts, lengths, keys=jax.random.split(jax.random.key(1), 3),
        allowed=jnp.ones((3, 64), bool), stops=jnp.zeros(64, bool), max_new=steps,
    ))(params)  # fmt: skip

    cache = Cache.empty(config.transformer, batch=3, slots=4 + steps)
    step, said, ids = jax.jit(decode_step(config)), [], prompts[:, :1]
    for place in range(3 + steps):
        ids, cache = step(params, ids, jnp.full((3, 1), place), cache)
        if place < 3:  # the prompt goes on
            ids = prompts[:, place + 1 : place + 2]
        else:
            said.append(ids)
    np.testing.assert_array_equal(jnp.concatenate(said, axis=1), generated.ids)


def test_parts_and_bound():
    pytest.importorskip("libtpu", reason="needs the `tpu` extra")
    slices = parse_topology("v5e:2x2")
    plan = plan_decoding(MODEL, slices, requests=8, length=512)
    found, stack = plan.to_json(), MODEL.transformer
    assert found["fits"] and found["tensor"] == 2, "two heads of keys"
    weights = sum(leaf.size for leaf in jax.tree.leaves(functional(MODEL).shapes))
    halves = 2 * weights / 2  # bfloat16, over two chips; norms on both
    assert halves < plan.parts["weights"] < 1.01 * halves
    held = 2 * stack.num_layers * stack.kv_heads * stack.head_dim * 512 * 8 * 2
    seen = 2 * 4 * 512 * 8  # segments and positions
    assert plan.parts["cache"] == pytest.approx(held / 4 + seen / 2, rel=0.01)
    read = plan.parts["weights"] + plan.parts["cache"]  # tied: the table is the output layer
    assert found["bounds_seconds"]["hbm"] == pytest.approx(read / slices.chip.hbm_bandwidth)
    assert found["tokens_per_second_bound"] == 8 / found["step_seconds_bound"]
    assert {one.kind for one in plan.compiled.collectives} <= {"all-reduce", "all-gather"}
    gathered = sum(one.bytes for one in plan.compiled.collectives)
    assert gathered < 0.1 * halves, "activations cross the network, weights do not"
    with pytest.raises(UserError, match="--requests: 3 do not divide over 2 groups of 2"):
        plan_decoding(MODEL, slices, requests=3, length=512)


def test_one_chip_sends_nothing_and_reads_no_table():
    pytest.importorskip("libtpu", reason="needs the `tpu` extra")
    slices, own = parse_topology("v6e:1x1"), dataclasses.replace(MODEL, tied=False)
    plan = plan_decoding(own, slices, requests=1, length=128)
    assert plan.fits and not plan.compiled.collectives and plan.bounds.ici == 0
    read = plan.parts["weights"] + plan.parts["cache"] - 2 * 1024 * MODEL.transformer.embed
    assert plan.bounds.hbm == pytest.approx(read / slices.chip.hbm_bandwidth)


def test_one_thing_is_asked_at_a_time(capsys):
    line = ["plan", "configs/lm_150m.py", "--topology", "v5e:2x2", "--decode", "--search"]
    assert cli.main(line) == EXIT_USAGE
    assert "not allowed with" in capsys.readouterr().err
    assert cli.main([*line[:-1], "--requests", "0"]) == EXIT_USAGE
    assert "'0' is no whole number of 1 or more" in capsys.readouterr().err
