"""Hosts that do not come are named; a dead one ends the others; a restart goes on, on one too."""

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speechlm_jax import artifacts
from speechlm_jax.errors import EXIT_USAGE, UserError
from speechlm_jax.train.cluster import ClusterConfig

SCRIPT = Path(__file__).with_name("cluster_host.py")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start(workdir, port, *, hosts, host, steps=24, start_seconds=60):
    arguments = [hosts, host, port, workdir, steps, start_seconds]
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def steps_in(workdir):
    metrics = workdir / "metrics.jsonl"
    return [row["step"] for row in artifacts.read_jsonl(metrics)] if metrics.is_file() else []


def test_hosts_that_do_not_come_are_named(tmp_path):
    port = free_port()
    came = [start(tmp_path, port, hosts=4, host=host, start_seconds=8) for host in (0, 2)]
    said = [process.communicate(timeout=90)[1] for process in came]
    assert all(process.returncode == EXIT_USAGE for process in came), said
    assert all("hosts 1, 3 of 4 have not come after 8 s" in text for text in said), said


def test_a_host_without_its_coordinator_says_so(tmp_path):
    process = start(tmp_path, free_port(), hosts=2, host=1, start_seconds=2)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == EXIT_USAGE and "host 1 of 2: could not reach localhost:" in said


@pytest.mark.slow  # a minute: heartbeats, and two starts of JAX
def test_a_dead_host_ends_the_others_and_a_restart_on_one_goes_on(tmp_path):
    port = free_port()
    hosts = [start(tmp_path, port, hosts=2, host=host, steps=600) for host in (0, 1)]
    deadline = time.monotonic() + 120
    while len(steps_in(tmp_path)) < 5 and time.monotonic() < deadline:
        time.sleep(0.2)
    hosts[1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    said = hosts[0].communicate(timeout=90)[1]
    assert hosts[0].returncode not in (0, None) and time.monotonic() - began < 60
    assert re.search(r"(?i)heartbeat|unavailable|connection|peer", said), said
    assert max(steps_in(tmp_path)) < 600
    last = start(tmp_path, 0, hosts=1, host=0, steps=600)
    _, said = last.communicate(timeout=120)
    assert last.returncode == 0, said
    assert "going on from step" in said and max(steps_in(tmp_path)) == 600


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"hosts": 2, "host": 2}, "host 2 of 2"),
        ({"hosts": -1}, "host 0 of -1"),
        ({"hosts": 2, "coordinator": "here"}, "coordinator here: give HOST:PORT"),
    ],
    ids=str,
)
def test_what_is_no_cluster_is_refused(wrong, told):
    with pytest.raises(UserError, match=told):
        ClusterConfig(**wrong)
