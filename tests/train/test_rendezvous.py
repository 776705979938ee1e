"""Hosts that do not come are named on all that did; a stranger holds nobody up for long."""

import contextlib
import json
import socket
import threading
import time

import pytest

from speechlm_jax.errors import UserError
from speechlm_jax.train import rendezvous
from speechlm_jax.train.rendezvous import meet, run_token


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


TOKEN = run_token("", 3)


def line(**message):
    return json.dumps({"run": TOKEN, **message}).encode() + b"\n"


STRANGERS = {
    "a number": b"1\n",
    "a list": b"[[[[\n",
    "deep": b"[" * 4000 + b"\n",
    "deep and whole": b"[" * 2000 + b"]" * 2000 + b"\n",
    "of another run": b'{"host": 1}\n',
    "of another run, with a token": line(host=1, run="0" * 32),
    "a token of another kind": line(host=1, run=[1]),
    "beyond": line(host=99),
    "a host that there would be": line(host=3),
    "negative": line(host=-1),
    "host 0": line(host=0),
    "true": line(host=True),
    "a fraction": line(host=1.0),
    "text": line(host="1"),
    "nothing": line(),
    "huge": b'{"host": ' + b"1" * 4000 + b"}\n",
    "not UTF-8": b"\xff\xfe\n",
    "a surrogate": b'{"host": "\\ud800"}\n',
    "endless": b"x" * 10_000,
    "HTTP": b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    "two lines": line(host=1) + b"{}\n",
    "silent": b"",
    "cut": b'{"host"',
}


@contextlib.contextmanager
def reception(port, hosts=3):
    """Host 0 waits meanwhile; gives what it got."""
    results = {}
    thread = threading.Thread(
        target=lambda: results.update(meet_all(hosts, port, came=(0,), seconds=20.0))
    )
    thread.start()
    yield results
    thread.join()


def knock(port, data=b""):
    """A connection to whoever listens on a port, once somebody does."""
    deadline = time.monotonic() + 10
    while True:
        try:
            connection = socket.create_connection(("localhost", port), timeout=10)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        else:
            connection.sendall(data)
            return connection


def test_strangers_take_no_seat_and_hold_nobody_up(port):
    """All are there at once, most of them silent, before the hosts come."""
    with reception(port) as results:
        strangers = [knock(port, data) for data in STRANGERS.values()]
        began = time.monotonic()
        results.update(meet_all(3, port, came=(1, 2), seconds=20.0))
        assert time.monotonic() - began < rendezvous.STRANGER_SECONDS / 2
    assert results == {0: [1, 2], 1: [0], 2: [0]}
    for stranger in strangers:
        stranger.close()


def test_one_that_speaks_slowly_or_in_crowds_is_turned_away(port, monkeypatch):
    monkeypatch.setattr(rendezvous, "STRANGER_SECONDS", 0.3)
    monkeypatch.setattr(rendezvous, "MOST_STRANGERS", 5)
    with reception(port) as results:
        slow = knock(port, b"{")
        with pytest.raises(OSError):  # noqa: PT011 - reset, or a broken pipe
            for _ in range(100):
                time.sleep(0.05)
                slow.sendall(b" ")
        crowd = [knock(port) for _ in range(9)]
        assert crowd[0].recv(1) == b"", "the first of too many"
        results.update(meet_all(3, port, came=(1, 2), seconds=20.0))
    assert results == {0: [1, 2], 1: [0], 2: [0]}
    for one in (slow, *crowd):
        one.close()


def test_a_number_that_is_taken_is_refused_until_its_holder_leaves(port):
    with reception(port) as results:
        first = knock(port, line(host=1))
        time.sleep(0.1)
        second = knock(port, line(host=1))
        assert "there is a host 1 already" in rendezvous.receive(second, seconds=5.0)["refused"]
        first.close()
        results.update(meet_all(3, port, came=(1, 2), seconds=20.0))
    assert results == {0: [1, 2], 1: [0], 2: [0]}
    second.close()


def test_hosts_of_another_run_are_told(port):
    with reception(port) as results:
        with pytest.raises(UserError, match="another run; start all hosts with the same config"):
            meet(1, 3, f"localhost:{port}", seconds=1.0, run="other")
        results.update(meet_all(3, port, came=(1, 2), seconds=20.0))
    assert results[0] == [1, 2]


@pytest.mark.parametrize(
    "answer",
    [b"1\n", b"[[\n", line(missing=5), line(missing=["1"]), line(missing=[7]), line(), b""],
)
def test_a_host_0_that_talks_nonsense_is_none(port, answer):
    def pretend(listener):
        with contextlib.suppress(OSError):
            while True:
                connection = listener.accept()[0]
                connection.recv(4096)
                connection.sendall(answer)
                connection.close()

    with socket.create_server(("", port)) as listener:
        threading.Thread(target=pretend, args=(listener,), daemon=True).start()
        with pytest.raises(UserError, match="host 1 of 3: could not reach .* for 0 s"):
            meet(1, 3, f"localhost:{port}", seconds=0.3)
        listener.shutdown(socket.SHUT_RDWR)


def test_a_port_that_is_taken_is_one_line(port):
    with (
        socket.create_server(("", port)),
        pytest.raises(UserError, match=f"host 0 of 2: cannot listen on port {port}"),
    ):
        meet(0, 2, f"localhost:{port}", seconds=1.0)


def test_the_token_is_of_the_run_and_of_the_secret(monkeypatch):
    found = {run_token("a", 2), run_token("a", 3), run_token("b", 2)}
    monkeypatch.setenv("SPEECHLM_CLUSTER_SECRET", "s")
    found |= {run_token("a", 2)}
    assert len(found) == 4 and run_token("a", 2) in found


def test_two_lines_at_once_are_read_one_by_one():
    one, other = socket.socketpair()
    with one, other:
        one.sendall(line(host=1) + line(host=2))
        assert [rendezvous.receive(other, seconds=5.0)["host"] for _ in range(2)] == [1, 2]
        one.sendall(b"{")
        with pytest.raises((OSError, ValueError)):
            rendezvous.receive(other, seconds=0.1)
