"""Two hosts end where one does; a dead or failed host ends the others; a restart goes on."""

import dataclasses
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import toy_language_model
import toy_stage
from cluster_host import LONG_STEPS, SIGNAL_AT_STEP

from speechlm_jax import artifacts
from speechlm_jax.errors import EXIT_STOPPED, EXIT_USAGE, UserError
from speechlm_jax.sharding import RowPart
from speechlm_jax.train import checkpoint_folder, checkpoints
from speechlm_jax.train.cluster import ClusterConfig
from speechlm_jax.train.loop import fit

SENTINEL_SECONDS = 1.0  # it speaks after its trainer's end
SCRIPT = Path(__file__).with_name("cluster_host.py")
TIMES = ("seconds", "_per_second", "mfu", "goodput")


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start(what, workdir, hosts):
    """Starts all hosts of a cluster; what they say on standard error goes to a file of each."""
    port = free_port()
    workdir.mkdir(exist_ok=True)
    processes = []
    for host in range(hosts):
        command = [sys.executable, str(SCRIPT), *map(str, (what, workdir, hosts, host, port))]
        with open(workdir / f"host{host}.txt", "w", encoding="utf-8") as said:
            processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said))
    return processes


def ends(processes, workdir, *, seconds=120):
    """Exit codes, and what was said on standard error."""
    try:
        codes = [process.wait(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    time.sleep(SENTINEL_SECONDS)
    return codes, [
        (workdir / f"host{host}.txt").read_text(encoding="utf-8") for host in range(len(processes))
    ]


def last_line(text):
    return text.splitlines()[-1]


def steps_in(workdir):
    metrics = workdir / "metrics.jsonl"
    return [row["step"] for row in artifacts.read_jsonl(metrics)] if metrics.is_file() else []


def results_in(workdir):
    """Lines of metrics.jsonl without what a clock measured."""
    return [
        {name: x for name, x in line.items() if not any(word in name for word in TIMES)}
        for line in artifacts.read_jsonl(workdir / "metrics.jsonl")
    ]


def assert_close(first, second):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        jax.device_get(first),
        jax.device_get(second),
    )


def assert_same_results(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The toy stage on one process with as many devices: its workdir and last state."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, fit(toy_stage.make_stage(), toy_stage.CONFIG, workdir)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two hosts have trained, and what they said."""
    workdir = tmp_path_factory.mktemp("two")
    codes, said = ends(start("all", workdir, 2), workdir)
    assert codes == [EXIT_STOPPED] * 2, "\n".join(said)
    return workdir, said


def test_two_hosts_end_where_one_does(two, whole):
    workdir, _ = two
    trained = checkpoints.load_params(workdir / "toy")
    assert trained.meta.rows_seen == toy_stage.ROWS * toy_stage.CONFIG.total_steps
    assert_close(trained.params, whole[1].params)
    assert_close(trained.variables, whole[1].variables)


def test_two_hosts_log_once_what_one_does(two, whole):
    workdir, said = two
    assert_same_results(results_in(workdir / "toy"), results_in(whole[0]))
    assert "toy 24/24" in said[0] and "toy 24/24" not in said[1]


def test_a_language_model_has_the_same_losses_on_two_hosts(two, tmp_path):
    stage = toy_language_model.make_language_model(RowPart(0, 1))
    fit(stage, toy_language_model.CONFIG, tmp_path)
    lines = results_in(tmp_path)
    for name in ("loss/task/first", "loss/task/second", "held_out/first", "held_out/second"):
        assert any(name in line for line in lines)
    assert_same_results(results_in(two[0] / "lm"), lines)


def test_a_signal_to_one_host_stops_both_and_the_run_goes_on_on_one(two, whole):
    workdir, said = two[0] / "stopped", two[1]
    stopped_at = checkpoint_folder.steps(workdir / "checkpoints")[-1]
    assert SIGNAL_AT_STEP < stopped_at < toy_stage.CONFIG.total_steps
    assert all(f"toy: saved at step {stopped_at} of 24" in last_line(text) for text in said)
    state = fit(toy_stage.make_stage(), toy_stage.CONFIG, workdir)
    assert_close(state.params, whole[1].params)


@pytest.mark.slow
def test_a_host_that_fails_ends_the_others_with_its_reason(tmp_path):
    codes, said = ends(start("fails", tmp_path, 2), tmp_path)
    assert codes[0] and codes[1] == EXIT_USAGE, "\n".join(said)
    reason = "toy: the batches ended before step 11"
    assert last_line(said[0]).startswith(f"speechlm: error: host 1 of 2 has failed ({reason}")
    assert last_line(said[1]).startswith(reason)


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """The parameters of a long run that nobody disturbed."""
    config = dataclasses.replace(toy_stage.CONFIG, total_steps=LONG_STEPS)
    return fit(toy_stage.make_stage(), config, tmp_path_factory.mktemp("long")).params


@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize("hosts, victim, later", [(2, 1, 1), (2, 0, 2), (4, 2, 2)])
def test_a_dead_host_ends_the_others_and_a_restart_goes_on(
    tmp_path, long_run, hosts, victim, later
):
    processes = start("long", tmp_path, hosts)
    deadline = time.monotonic() + 120
    while len(steps_in(tmp_path)) < 5 and time.monotonic() < deadline:
        time.sleep(0.1)
    processes[victim].kill()
    began = time.monotonic()
    codes, said = ends(processes, tmp_path, seconds=30)
    assert time.monotonic() - began < 5 and all(codes), codes
    for host, text in enumerate(said):
        who = " (this one) was killed" if host == victim else " has died or cannot be reached"
        assert f"speechlm: error: host {victim} of {hosts}{who}" in last_line(text), said
        assert "start the same command again" in last_line(text)
    assert max(steps_in(tmp_path)) < LONG_STEPS
    codes, said = ends(start("long", tmp_path, later), tmp_path)
    assert codes == [0] * later, "\n".join(said)
    assert "going on from step" in said[0] and max(steps_in(tmp_path)) == LONG_STEPS
    assert_close(checkpoints.load_params(tmp_path).params, long_run)


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"hosts": 2, "host": 2}, "host 2 of 2"),
        ({"hosts": -1}, "host 0 of -1"),
        ({"hosts": 2, "coordinator": "here"}, "coordinator here: give HOST:PORT"),
        ({"hosts": 2, "coordinator": "here:"}, "coordinator here:: give HOST:PORT"),
        ({"hosts": 2, "coordinator": "here:x"}, "coordinator here:x: give HOST:PORT"),
        ({"hosts": 2, "coordinator": "here:99999"}, "give HOST:PORT"),
    ],
    ids=str,
)
def test_what_is_no_cluster_is_refused(wrong, told):
    with pytest.raises(UserError, match=told):
        ClusterConfig(**wrong)
