"""Hosts that do not come are named on all that did; a stranger holds nobody up for long."""

import socket
import threading
import time

import pytest

from speechlm_jax.errors import UserError
from speechlm_jax.train import rendezvous
from speechlm_jax.train.rendezvous import meet


@pytest.fixture
def port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def meet_all(hosts, port, *, came, seconds):
    """What each host that came got: the hosts that it is connected with, or the error."""
    results = {}

    def run(host):
        try:
            peers = meet(host, hosts, f"localhost:{port}", seconds=seconds)
        except UserError as error:
            results[host] = str(error)
        else:
            results[host] = sorted(peers)
            for connection in peers.values():
                connection.close()

    threads = [threading.Thread(target=run, args=(host,)) for host in came]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_all_are_connected_with_host_0(port):
    results = meet_all(3, port, came=(2, 1, 0), seconds=20.0)
    assert results == {0: [1, 2], 1: [0], 2: [0]}


def test_hosts_that_do_not_come_are_named(port):
    results = meet_all(4, port, came=(0, 2), seconds=1.0)
    assert results.keys() == {0, 2}
    assert all("hosts 1, 3 of 4 have not come after 1 s" in text for text in results.values())


def test_a_host_without_its_coordinator_says_so(port):
    (text,) = meet_all(2, port, came=(1,), seconds=1.0).values()
    assert f"host 1 of 2: could not reach localhost:{port} for 1 s" in text


def test_a_stranger_holds_nobody_up(port, monkeypatch):
    monkeypatch.setattr(rendezvous, "STRANGER_SECONDS", 0.2)
    results = {}
    first = threading.Thread(
        target=lambda: results.update(meet_all(2, port, came=(0,), seconds=20.0))
    )
    first.start()
    deadline = time.monotonic() + 10
    stranger = None
    while stranger is None and time.monotonic() < deadline:
        try:
            stranger = socket.create_connection(("localhost", port), timeout=1)
        except OSError:
            time.sleep(0.05)
    assert stranger is not None
    results.update(meet_all(2, port, came=(1,), seconds=20.0))
    first.join()
    stranger.close()
    assert results == {0: [1], 1: [0]}
