"""Interrupted runs end where undisturbed ones do, bit for bit; other runs are refused by name."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import jax
import numpy as np
import optax
import pytest
import toy_stage
from toy_stage import CONFIG, assert_same, batch_of, make_stage

from speechlm_jax import folder_lock
from speechlm_jax.errors import Stopped, UserError
from speechlm_jax.sharding import MeshConfig
from speechlm_jax.train import checkpoint_folder, loop
from speechlm_jax.train.loop import fit
from speechlm_jax.train.stage import Evaluation
from speechlm_jax.train.watchdog import Watchdog


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run: its workdir and its last state on the host."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, jax.device_get(fit(make_stage(), CONFIG, workdir))


def read_metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def send(number, *, at_step):
    """An evaluation that sends this process a signal, as the outside world would."""

    def run(state):
        if state.step == at_step:
            os.kill(os.getpid(), number)
        return {}

    return Evaluation("signal", at_step, run)


def run_in_process(workdir, **kwargs):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
    command = [sys.executable, toy_stage.__file__, str(workdir)]
    return subprocess.Popen(command, env=environment, text=True, **kwargs)


def test_it_learns_logs_evaluates_and_saves(whole):
    workdir, state = whole
    lines = read_metrics(workdir)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 6 and losses[-1] < 0.8 * losses[0]
    assert [line["step"] for line in lines if "held_out/sum" in line] == [6, 12, 18, 24]
    assert checkpoint_folder.steps(workdir / "checkpoints") == [20, 24]
    meta = checkpoint_folder.read_meta(workdir / "checkpoints/00000024")
    assert meta.rows_seen == 24 * toy_stage.ROWS and meta.identity == {"vocabulary": "v1"}
    assert json.loads((workdir / "config.json").read_text()) == meta.config
    assert int(state.step) == 24


def test_a_finished_run_returns_at_once(whole):
    workdir, state = whole

    def none(rows_seen):
        raise AssertionError("a finished run reads no data")

    assert_same(fit(make_stage(batches=none), CONFIG, workdir), state)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_next_run_ends_the_same(whole, tmp_path, number):
    stage = make_stage()
    handler = signal.getsignal(number)
    with pytest.raises(Stopped, match="step 8 of 24"):
        fit(make_stage(evals=(*stage.evals, send(number, at_step=7))), CONFIG, tmp_path)
    assert checkpoint_folder.steps(tmp_path / "checkpoints") == [5, 8]
    assert signal.getsignal(number) == handler
    before = checkpoint_folder.read_meta(tmp_path / "checkpoints/00000008").timing
    assert_same(fit(stage, CONFIG, tmp_path), whole[1])
    after = checkpoint_folder.read_meta(tmp_path / "checkpoints/00000024").timing
    assert after["wall_seconds"] > before["wall_seconds"] > 0
    assert after["cpu_seconds"] > before["cpu_seconds"] > 0


def test_a_signal_after_the_last_step_still_stops_the_caller(tmp_path):
    with pytest.raises(Stopped, match="finished and saved"):
        fit(make_stage(evals=(send(signal.SIGTERM, at_step=24),)), CONFIG, tmp_path)
    assert checkpoint_folder.steps(tmp_path / "checkpoints")[-1] == 24


def test_kill_9_at_any_moment_and_the_next_run_ends_the_same(whole, tmp_path):
    process = run_in_process(tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not checkpoint_folder.steps(tmp_path / "checkpoints") and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(random.Random(os.getpid()).uniform(0, 0.15))
    process.kill()
    process.wait()
    assert_same(fit(make_stage(), CONFIG, tmp_path), whole[1])
    steps = [line["step"] for line in read_metrics(tmp_path) if "loss" in line]
    assert steps == [4, 8, 12, 16, 20, 24]


def test_the_newest_checkpoint_damaged_and_the_run_still_ends_the_same(whole, tmp_path):
    with pytest.raises(Stopped):
        fit(make_stage(evals=(send(signal.SIGTERM, at_step=12),)), CONFIG, tmp_path)
    (tmp_path / "checkpoints/00000013/meta.json").write_text("{}")
    assert_same(fit(make_stage(), CONFIG, tmp_path), whole[1])
    assert (tmp_path / "checkpoints/00000013.damaged").is_dir()


@pytest.mark.parametrize("at_step", [10, 24])
def test_an_evaluation_that_ends_the_run_costs_no_step_and_is_made_up_for(whole, tmp_path, at_step):
    """A hang or a lost host in it: the step is saved, and so the next start does not end there."""
    died, seen = [], []

    def measure(state):
        state.alive()
        seen.append(state.step)
        if state.step == at_step and not died:
            died.append(at_step)
            raise RuntimeError("lost")
        return {"x": float(state.step)}

    stage = make_stage(evals=(Evaluation("one", 5, measure),))
    with pytest.raises(RuntimeError, match="lost"):
        fit(stage, CONFIG, tmp_path)
    assert checkpoint_folder.steps(tmp_path / "checkpoints")[-1] == at_step
    seen.clear()
    assert_same(fit(stage, CONFIG, tmp_path), whole[1])
    assert seen == [step for step in (5, 10, 15, 20, 24) if step >= at_step]
    logged = [line["step"] for line in read_metrics(tmp_path) if "one/x" in line]
    assert logged == [5, 10, 15, 20, 24]
    fit(stage, CONFIG, tmp_path)
    assert seen[-1] == 24 and seen.count(24) == 1, "and a finished run returns at once"


def test_a_second_run_in_a_workdir_is_refused_and_harms_nothing(whole, tmp_path):
    refused = []

    def start_another(state):
        with pytest.raises(UserError, match="in use .process") as error:
            fit(make_stage(), CONFIG, tmp_path)
        refused.append(str(error.value))
        return {}

    state = fit(make_stage(evals=(Evaluation("other", 6, start_another),)), CONFIG, tmp_path)
    assert_same(state, whole[1])
    assert len(refused) == 4 and str(tmp_path / folder_lock.FILE) in refused[0]
    assert str(os.getpid()) in refused[0] and "\n" not in refused[0]


def test_a_run_that_has_lost_its_workdir_writes_nothing_more(tmp_path):
    """As after a sleep during which another host has taken over."""
    others = '{"token": "other"}'

    def take_away(state):
        (tmp_path / folder_lock.FILE).unlink()
        (tmp_path / folder_lock.FILE).write_text(others)
        return {}

    stage = make_stage(evals=(Evaluation("theft", 7, take_away),))
    with pytest.raises(UserError, match="this folder is no longer this process's"):
        fit(stage, CONFIG, tmp_path)
    # the save of step 5 may have been under way, and then does not count
    assert checkpoint_folder.steps(tmp_path / "checkpoints") in ([], [5])
    assert not (tmp_path / "checkpoints/00000010").exists()
    assert (tmp_path / folder_lock.FILE).read_text() == others


def test_a_long_evaluation_is_no_hang(tmp_path, monkeypatch):
    signs = []
    monkeypatch.setattr(Watchdog, "alive", lambda self: signs.append(time.monotonic()))

    def slow(state):
        before = len(signs)
        for _ in range(3):
            state.alive()
        assert len(signs) == before + 3
        return {}

    config = dataclasses.replace(CONFIG, total_steps=5)
    fit(make_stage(evals=(Evaluation("slow", 5, slow),)), config, tmp_path)
    assert len(signs) > 3


def test_it_imports_neither_tensorflow_nor_seqio_nor_grain(tmp_path):
    process = run_in_process(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, errors = process.communicate(timeout=60)
    assert output == "finished\n", errors


def test_resumed_on_another_mesh(whole, tmp_path):
    with pytest.raises(Stopped):
        fit(make_stage(evals=(send(signal.SIGTERM, at_step=6),)), CONFIG, tmp_path)
    other = dataclasses.replace(CONFIG, mesh=MeshConfig(fsdp=2, tensor=2), log_every_steps=3)
    state = fit(make_stage(), other, tmp_path)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        jax.device_get(state.params),
        whole[1].params,
    )


def test_another_run_is_refused_with_both_sides_named(whole):
    workdir, _ = whole
    with pytest.raises(UserError, match="vocabulary v1, this run has v2; use another workdir"):
        fit(make_stage(identity={"vocabulary": "v2"}), CONFIG, workdir)
    with pytest.raises(UserError, match="stage toy, this run has lm"):
        fit(make_stage(name="lm"), CONFIG, workdir)
    with pytest.raises(UserError, match="plan None, this run has p1"):
        fit(make_stage(identity={"vocabulary": "v1", "plan": "p1"}), CONFIG, workdir)
    longer = dataclasses.replace(CONFIG, total_steps=30)
    with pytest.raises(UserError, match="total_steps=24, this run has 30"):
        fit(make_stage(), longer, workdir)


def test_init_from_takes_the_weights_and_nothing_else(whole, tmp_path):
    workdir, state = whole
    seen = []

    def watch(eval_state):
        seen.append(jax.device_get(eval_state.params))
        return {}

    config = dataclasses.replace(
        CONFIG,
        total_steps=1,
        init_from=str(workdir),
        optimizer=dataclasses.replace(CONFIG.optimizer, warmup_steps=0, peak=1e-9),
    )
    stage = make_stage(
        evals=(Evaluation("watch", 1, watch),), identity={"vocabulary": "v1", "plan": "p2"}
    )
    new = fit(stage, config, tmp_path / "new")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), seen[0], state.params)
    assert int(new.step) == 1 and int(optax.tree_utils.tree_get(new.opt_state, "count")) == 1
    with pytest.raises(UserError, match="has vocabulary v1, this run has v9"):
        fit(make_stage(identity={"vocabulary": "v9"}), config, tmp_path / "other")


def test_a_warmup_of_all_steps_is_refused_at_the_start_alone(whole, tmp_path):
    """Earlier versions took it: what they began, or have finished, goes on."""
    warmup = dataclasses.replace(CONFIG.optimizer, warmup_steps=CONFIG.total_steps)
    config = dataclasses.replace(CONFIG, optimizer=warmup)
    with pytest.raises(UserError, match="warmup_steps"):
        fit(make_stage(), config, tmp_path / "new")
    with patch.object(loop, "check_new"):  # as an earlier version
        state = jax.device_get(fit(make_stage(), config, tmp_path / "old"))
    assert_same(jax.device_get(fit(make_stage(), config, tmp_path / "old")), state)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (lambda rows_seen: iter([batch_of(0)]), "ended before step 2 of 24"),
        (lambda rows_seen: iter([{"x": np.zeros((6, 8))}]), "6 rows does not divide into 1 part"),
    ],
)
def test_batches_that_do_not_fit_are_named(tmp_path, batches, message):
    with pytest.raises(UserError, match=message):
        fit(make_stage(batches=batches), CONFIG, tmp_path)


def test_a_run_without_any_finite_gradient_ends(tmp_path):
    config = dataclasses.replace(CONFIG, max_skipped_steps=8)

    def bad(rows_seen):
        while True:
            yield batch_of(0, noise=float("nan"))

    with pytest.raises(UserError, match="8 updates in a row up to step 8"):
        fit(make_stage(batches=bad), config, tmp_path)


def test_batches_of_several_shapes(tmp_path):
    def buckets(rows_seen):
        for index in range(rows_seen // toy_stage.ROWS, 100):
            batch = batch_of(index)
            yield batch if index % 2 else {name: rows[:4] for name, rows in batch.items()}

    config = dataclasses.replace(CONFIG, total_steps=5)
    assert int(fit(make_stage(batches=buckets), config, tmp_path).step) == 5
    assert checkpoint_folder.read_meta(tmp_path / "checkpoints/00000005").rows_seen == 28
