"""All hosts of a run say that they are there, so that those that are not can be named.

JAX's own start ends the process without saying who is missing. So the hosts meet first, on the
coordinator's port, which JAX takes over afterwards: host 0 listens, the others say their number and
wait for its answer, one line each way.
"""

import contextlib
import json
import socket
import time
from collections.abc import Sequence

from speechlm_jax.errors import UserError

RETRY_SECONDS = 0.2
LINE_BYTES = 4096


def meet(host: int, hosts: int, coordinator: str, *, seconds: float) -> None:
    """Returns once all hosts have come.

    Raises:
      UserError: not all came within `seconds`; every host that did names those that are missing.
    """
    name, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + seconds
    if host == 0:
        missing = _wait_for_all(int(port), hosts, deadline)
    else:
        missing = _report(host, name, int(port), deadline)
    if missing is None:
        raise UserError(
            f"host {host} of {hosts}: could not reach {coordinator} for {seconds:.0f} s; is host 0 "
            "up, and its port open?"
        )
    if missing:
        listed = ", ".join(map(str, missing))
        raise UserError(
            f"hosts {listed} of {hosts} have not come after {seconds:.0f} s; look at their logs"
        )


def _wait_for_all(port: int, hosts: int, deadline: float) -> Sequence[int]:
    """Host 0: who is missing; everyone who came is told."""
    came: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("", port), backlog=hosts))
        while len(came) < hosts - 1 and time.monotonic() < deadline:
            listener.settimeout(max(0.01, deadline - time.monotonic()))
            with contextlib.suppress(OSError, ValueError, KeyError):  # a stranger, or a broken line
                connection = stack.enter_context(listener.accept()[0])
                connection.settimeout(max(0.01, deadline - time.monotonic()))
                came[int(_read(connection)["host"])] = connection
        missing = sorted(set(range(1, hosts)) - came.keys())
        for connection in came.values():
            with contextlib.suppress(OSError):
                _write(connection, {"missing": missing})
    return missing


def _report(host: int, name: str, port: int, deadline: float) -> Sequence[int] | None:
    """Another host: what host 0 answers, None if it was never heard."""
    while time.monotonic() < deadline:
        left = max(0.01, deadline - time.monotonic())
        try:
            with socket.create_connection((name, port), timeout=left) as connection:
                _write(connection, {"host": host})
                # host 0 answers at its own deadline, which may be later than this one's
                connection.settimeout(left + RETRY_SECONDS + 5.0)
                return _read(connection)["missing"]
        except (OSError, ValueError, KeyError):
            time.sleep(RETRY_SECONDS)
    return None


def _write(connection: socket.socket, message: dict[str, object]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _read(connection: socket.socket) -> dict:
    """One line of JSON; ValueError if the other side closed before its end."""
    data = b""
    while not data.endswith(b"\n"):
        part = connection.recv(LINE_BYTES)
        if not part or len(data) > LINE_BYTES:
            raise ValueError("no line")
        data += part
    return json.loads(data)
