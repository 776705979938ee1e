"""One host dies or fails and all others end with a line that names it; who ends well is quiet."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from speechlm_jax.train import sentinel

SCRIPT = Path(__file__).with_name("sentinel_host.py")


def run(whats):
    """Exit code and standard error of hosts that do these things."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    hosts = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), *map(str, (host, len(whats), port, what))],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for host, what in enumerate(whats)
    ]  # fmt: skip
    said = [host.communicate(timeout=30) for host in hosts]
    assert all(out == "up\n" for out, _ in said), said
    return [host.returncode for host in hosts], [error for _, error in said]


@pytest.mark.parametrize("victim", [0, 1, 3])
def test_a_host_that_dies_ends_the_others(victim):
    codes, said = run(["dies" if host == victim else "sleeps" for host in range(4)])
    assert codes == [-signal.SIGKILL] * 4
    for host, text in enumerate(said):
        who = (
            " (this one) was killed or has" if host == victim else " has died or cannot be reached"
        )
        assert text.startswith(f"speechlm: error: host {victim} of 4{who}"), said
        assert text.count("\n") == 1 and "start the same command again" in text


@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_that_fails_ends_the_others_with_its_reason(victim):
    codes, said = run(["fails" if host == victim else "sleeps" for host in range(3)])
    assert codes == [2 if host == victim else -signal.SIGKILL for host in range(3)]
    for host, text in enumerate(said):
        told = f"speechlm: error: host {victim} of 3 has failed (no rows)"
        assert text == "" if host == victim else text.startswith(told), said


def test_a_death_comes_before_the_error_that_it_causes():
    _, said = run(["fails", "dies", "sleeps"])
    assert all("host 1 of 3" in said[host] for host in (1, 2)), said


def test_hosts_that_end_well_say_nothing():
    assert run(["ends"] * 3) == ([0] * 3, [""] * 3)


NONSENSE = [
    b"1\n", b"[[[[\n", b"{}\n", b'{"host": 99, "why": "x"}\n', b'{"host": true, "why": "x"}\n',
    b'{"host": 1}\n', b'{"host": -1, "why": 1}\n', b"[" * 4000 + b"\n", b"\xff\n",
    b"x" * 9000, b'{"h',
]  # fmt: skip


@pytest.mark.parametrize("data", NONSENSE, ids=range(len(NONSENSE)))
def test_a_peer_that_talks_nonsense_counts_as_dead(data, monkeypatch):
    monkeypatch.setattr(sentinel, "VERDICT_SECONDS", 0.2)
    one, other = socket.socketpair()
    with one, other:
        one.sendall(data)
        assert sentinel._from_peer(other, 1, 2) == sentinel.Fault(1, sentinel.DIED)


def test_what_a_peer_says_is_one_line_of_a_bounded_length():
    one, other = socket.socketpair()
    with one, other:
        one.sendall(json.dumps({"host": 0, "why": "no rows\n" + "x" * 2000}).encode() + b"\n")
        assert sentinel._from_peer(other, 1, 2) == sentinel.Fault(0, "no rows")
        one.sendall(b'{"ended": true}\n')
        assert sentinel._from_peer(other, 1, 2) is None
