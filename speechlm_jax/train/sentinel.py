"""A small process beside each host of a run: when one host is gone, the others end and name it.

JAX ends a process whose peers are gone with a C++ stack trace, after the heartbeat's timeout. A
sentinel holds a pipe to its trainer and the connections on which the hosts met (rendezvous.py), so
it outlives its trainer. The first fault goes to host 0, whose sentinel tells all others; each ends
its trainer and writes one line to standard error, after the trainer's last.

    python -m speechlm_jax.train.sentinel HOST HOSTS PEER:DESCRIPTOR...
"""

import contextlib
import dataclasses
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from speechlm_jax.train.rendezvous import number_of_host, receive, send

TICK_SECONDS = 0.5
VERDICT_SECONDS = 5.0  # wait for host 0, which may have heard of an earlier fault
ECHO_SECONDS = 1.0  # an error may only follow from a death that is reported a moment later
DIED = "died"
MOST_SAID = 500  # characters of an error that are passed on
MODULE = "speechlm_jax.train.sentinel"


@dataclasses.dataclass(frozen=True)
class Fault:
    """Cause of the run's end: a host and its error message (`DIED` if it gave none)."""

    host: int
    why: str


class Sentinel:
    """The trainer's side: starts the sentinel's process and tells it how the trainer ends."""

    def __init__(self, host: int, hosts: int, peers: Mapping[int, socket.socket]):
        """Takes over the connections `peers`, by host; without any it watches only its trainer."""
        given = [f"{peer}:{line.fileno()}" for peer, line in peers.items()]
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE, str(host), str(hosts), *given],
            stdin=subprocess.PIPE,
            pass_fds=[line.fileno() for line in peers.values()],
            start_new_session=True,  # Ctrl-C is the trainer's
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        for line in peers.values():
            line.close()

    def ended(self) -> None:
        """Reports that the trainer has finished, or has saved and stops."""
        self._say({"ended": True})
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(VERDICT_SECONDS)

    def failed(self, why: str) -> None:
        """Reports that the trainer ends with an error; the other hosts then end with this line."""
        self._say({"failed": why})

    def _say(self, message: dict[str, object]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # the sentinel is gone; JAX's heartbeats remain
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()


def main(arguments: Sequence[str]) -> None:
    """Watches the trainer and the other sentinels until the run has ended."""
    host, hosts, trainer = int(arguments[0]), int(arguments[1]), os.getppid()
    for number in (signal.SIGTERM, signal.SIGINT):  # a notice of preemption goes to all processes
        signal.signal(number, signal.SIG_IGN)
    peers = {
        int(peer): socket.socket(fileno=int(descriptor))
        for peer, descriptor in (text.split(":") for text in arguments[2:])
    }
    fault = _first_fault(host, hosts, trainer, peers)
    if fault is None:
        _tell(peers, {"ended": True})
        return
    if host == 0 and fault.why != DIED:
        fault = _death(peers, hosts) or fault
    _tell(peers, dataclasses.asdict(fault))
    if host != 0 and fault.host == host:
        fault = _verdict(peers, hosts) or fault
    if fault.host != host and os.getppid() == trainer:
        os.kill(trainer, signal.SIGKILL)
    while os.read(0, 1):  # until the trainer is gone: its last line comes before ours
        pass
    if (fault.host, fault.why) == (host, DIED) or fault.host != host:
        print(f"speechlm: error: {_told(fault, host, hosts)}", file=sys.stderr, flush=True)


def _first_fault(
    host: int, hosts: int, trainer: int, peers: dict[int, socket.socket]
) -> Fault | None:
    """Waits for a fault, or for the trainer to end well (None); drops peers that ended well."""
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ, host)
        for peer, line in peers.items():
            selector.register(line, selectors.EVENT_READ, peer)
        while True:
            # a process forked from the trainer may keep the pipe open after it
            if os.getppid() != trainer:
                return Fault(host, DIED)
            for key, _ in selector.select(TICK_SECONDS):
                if key.data == host:
                    message = _from_trainer()
                    return None if "ended" in message else Fault(host, message["failed"])
                fault = _from_peer(peers[key.data], key.data, hosts)
                if fault is not None:
                    return fault
                selector.unregister(key.fileobj)
                del peers[key.data]


def _death(peers: Mapping[int, socket.socket], hosts: int) -> Fault | None:
    """Returns a death that is reported within `ECHO_SECONDS` of another host's failure, or None."""
    deadline = time.monotonic() + ECHO_SECONDS
    lines = {line: peer for peer, line in peers.items()}
    while lines and time.monotonic() < deadline:
        for line in select.select(lines, (), (), deadline - time.monotonic())[0]:
            fault = _from_peer(line, lines.pop(line), hosts)
            if fault is not None and fault.why == DIED:
                return fault
    return None


def _from_trainer() -> dict:
    line = sys.stdin.readline()
    return json.loads(line) if line.endswith("\n") else {"failed": DIED}


def _from_peer(line: socket.socket, peer: int, hosts: int) -> Fault | None:
    """Reads a sentinel's message: a fault, or a good end (None); nonsense counts as its death."""
    try:
        message = receive(line, seconds=VERDICT_SECONDS)
        if "ended" in message:
            return None
        why = str(message["why"])[:MOST_SAID].partition("\n")[0]
        return Fault(number_of_host(message.get("host"), hosts), why)
    except (OSError, ValueError, KeyError):
        return Fault(peer, DIED)


def _tell(peers: Mapping[int, socket.socket], message: dict) -> None:
    for line in peers.values():
        with contextlib.suppress(OSError):
            send(line, message)


def _verdict(peers: Mapping[int, socket.socket], hosts: int) -> Fault | None:
    """Returns the fault that host 0 heard of first, from which this host's may only follow."""
    return _from_peer(peers[0], 0, hosts) if 0 in peers else None


def _told(fault: Fault, host: int, hosts: int) -> str:
    named = f"host {fault.host} of {hosts}"
    if hosts == 0:
        what = "this host, or another that it trains with, has died"
    elif fault.why != DIED:
        what = f"{named} has failed ({fault.why})"
    elif fault.host == host:
        what = f"{named} (this one) was killed or has crashed"
    else:
        what = f"{named} has died or cannot be reached, so this one has ended"
    return f"{what}; start the same command again, the run goes on from its last checkpoint"


if __name__ == "__main__":
    main(sys.argv[1:])
