"""All hosts of a run say that they are there, so that those that are not can be named.

JAX's own start ends the process without saying who is missing. So the hosts meet first, on the
coordinator's port, which JAX takes over afterwards: host 0 listens, the others say their number and
wait for its answer, one line each way. The connections stay open for the sentinels (sentinel.py).
"""

import contextlib
import json
import socket
import time
from collections.abc import Mapping, Sequence

from speechlm_jax.errors import UserError

RETRY_SECONDS = 0.2
STRANGER_SECONDS = 5.0  # whoever connects and says nothing holds nobody up for longer
LINE_BYTES = 4096


def meet(host: int, hosts: int, coordinator: str, *, seconds: float) -> dict[int, socket.socket]:
    """Returns once all hosts have come: open connections by host, to all others or to host 0.

    Raises:
      UserError: not all came within `seconds`; every host that did names those that are missing.
    """
    name, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        if host == 0:
            peers = _wait_for_all(int(port), hosts, deadline)
            missing = sorted(set(range(1, hosts)) - peers.keys())
            _answer(peers, missing)
        else:
            peers, missing = _report(host, name, int(port), deadline)
        for connection in peers.values():
            stack.enter_context(connection)
        if not peers and host:
            raise UserError(
                f"host {host} of {hosts}: could not reach {coordinator} for {seconds:.0f} s; is "
                "host 0 up, and its port open?"
            )
        if missing:
            listed = ", ".join(map(str, missing))
            raise UserError(
                f"hosts {listed} of {hosts} have not come after {seconds:.0f} s; look at their logs"
            )
        stack.pop_all()
    return peers


def keep_alive(connection: socket.socket, seconds: float) -> None:
    """Makes a silent connection end, with an error, `seconds` after its other side was lost.

    Some networks also forget connections that say nothing for ten minutes.
    """
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    half, tenth = max(1, int(seconds / 2)), max(1, int(seconds / 10))
    for option, value in (("TCP_KEEPIDLE", half), ("TCP_KEEPINTVL", tenth), ("TCP_KEEPCNT", 5)):
        if hasattr(socket, option):  # named otherwise on macOS
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _wait_for_all(port: int, hosts: int, deadline: float) -> dict[int, socket.socket]:
    """Host 0: whoever comes until all have, or until the deadline."""
    came: dict[int, socket.socket] = {}
    with socket.create_server(("", port), backlog=hosts) as listener:
        while len(came) < hosts - 1 and time.monotonic() < deadline:
            listener.settimeout(max(0.01, deadline - time.monotonic()))
            with contextlib.suppress(OSError):
                connection = listener.accept()[0]
                connection.settimeout(STRANGER_SECONDS)
                try:
                    came[int(receive(connection)["host"])] = connection
                except (OSError, ValueError, KeyError):  # a stranger, or a broken line
                    connection.close()
    return came


def _answer(peers: Mapping[int, socket.socket], missing: Sequence[int]) -> None:
    for connection in peers.values():
        with contextlib.suppress(OSError):
            send(connection, {"missing": missing})


def _report(
    host: int, name: str, port: int, deadline: float
) -> tuple[dict[int, socket.socket], Sequence[int]]:
    """Another host: the connection to host 0 (none if it was never heard), and who is missing."""
    while time.monotonic() < deadline:
        left = max(0.01, deadline - time.monotonic())
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError, ValueError, KeyError):
            connection = stack.enter_context(socket.create_connection((name, port), timeout=left))
            send(connection, {"host": host})
            # host 0 answers at its own deadline, which may be later than this one's
            connection.settimeout(left + RETRY_SECONDS + STRANGER_SECONDS)
            missing = receive(connection)["missing"]
            stack.pop_all()
            return {0: connection}, missing
        time.sleep(RETRY_SECONDS)
    return {}, ()


def send(connection: socket.socket, message: Mapping[str, object]) -> None:
    """Writes one line of JSON."""
    connection.sendall(json.dumps(message).encode() + b"\n")


def receive(connection: socket.socket) -> dict:
    """Reads one line of JSON.

    Raises:
      ValueError: the other side closed before its end, or it is none.
    """
    data = b""
    while not data.endswith(b"\n"):
        part = connection.recv(LINE_BYTES)
        if not part or len(data) > LINE_BYTES:
            raise ValueError("no line")
        data += part
    return json.loads(data)
