"""The meeting of a run's hosts before JAX starts, so that missing hosts can be named.

JAX's own start ends the process without saying which host is missing. So the hosts first meet on
the coordinator's port, which JAX takes over afterwards: host 0 listens; each other host sends its
number and waits for the answer, one line each way. The connections stay open for the sentinels
(sentinel.py).

Each line carries the run's token, which every host computes from its own settings. It keeps out
whatever finds the port by chance: scanners, health checks, hosts of another run. The token is sent
in the clear, and JAX authenticates nobody: only the hosts of a run should reach the port.
"""

import contextlib
import hashlib
import json
import os
import selectors
import socket
import time
from collections.abc import Mapping, Sequence

from speechlm_jax.errors import UserError

RETRY_SECONDS = 0.2
STRANGER_SECONDS = 5.0  # for a new connection to identify itself
MOST_STRANGERS = 64  # unidentified connections at a time; beyond, the oldest is closed
SEATED_SECONDS = 30.0  # after which a host that came and was lost counts as missing
LINE_BYTES = 4096
SECRET = "SPEECHLM_CLUSTER_SECRET"  # environment variable; makes the token hard to guess


def run_token(run: str, hosts: int) -> str:
    """Returns a run's token, the same on each host whatever name it has for the coordinator."""
    known = json.dumps([run, hosts, os.environ.get(SECRET, "")])
    return hashlib.sha256(known.encode()).hexdigest()[:32]


def meet(
    host: int, hosts: int, coordinator: str, *, seconds: float, run: str = ""
) -> dict[int, socket.socket]:
    """Waits until all hosts have come and returns the open connections by host.

    Host 0 gets connections to all others, each of them gets one to host 0.

    Args:
      run: name of the run, the same on all hosts.

    Raises:
      UserError: not all came within `seconds`; every host that came names the missing ones.
    """
    name, _, port = coordinator.rpartition(":")
    deadline, token = time.monotonic() + seconds, run_token(run, hosts)
    with contextlib.ExitStack() as stack:
        if host == 0:
            peers = _wait_for_all(int(port), hosts, token, deadline)
            missing = sorted(set(range(1, hosts)) - peers.keys())
            _answer(peers, {"run": token, "missing": missing})
        else:
            peer, missing = _report(host, hosts, (name, int(port)), token, deadline, seconds)
            peers = {0: peer}
        for connection in peers.values():
            stack.enter_context(connection)
        if missing:
            listed = ", ".join(map(str, missing))
            raise UserError(
                f"hosts {listed} of {hosts} have not come after {seconds:.0f} s; look at their logs"
            )
        stack.pop_all()
    return peers


def keep_alive(connection: socket.socket, seconds: float) -> None:
    """Makes a silent connection fail `seconds` after its other side was lost.

    Its probes also help in networks that drop connections after ten silent minutes.
    """
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    half, tenth = max(1, int(seconds / 2)), max(1, int(seconds / 10))
    for option, value in (("TCP_KEEPIDLE", half), ("TCP_KEEPINTVL", tenth), ("TCP_KEEPCNT", 5)):
        if hasattr(socket, option):  # named otherwise on macOS
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


class _Reception:
    """Host 0's side of the meeting, in which a silent connection holds nobody up.

    Attributes:
      came: connections of the hosts that have come, by host number.
    """

    def __init__(self, hosts: int, token: str, selector: selectors.BaseSelector):
        self.came: dict[int, socket.socket] = {}
        self._hosts, self._token, self._selector = hosts, token, selector
        self._strangers: dict[socket.socket, tuple[bytes, float]] = {}  # received; deadline

    def let_in(self, connection: socket.socket) -> None:
        """Registers a new connection, which has `STRANGER_SECONDS` to identify itself."""
        keep_alive(connection, SEATED_SECONDS)
        connection.setblocking(False)
        self._strangers[connection] = (b"", time.monotonic() + STRANGER_SECONDS)
        self._selector.register(connection, selectors.EVENT_READ)
        if len(self._strangers) > MOST_STRANGERS:
            self._turn_away(next(iter(self._strangers)))

    def hear(self, connection: socket.socket) -> None:
        """Reads from a connection that has sent something or has closed."""
        try:
            part = connection.recv(LINE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        said, until = self._strangers.get(connection, (b"", 0.0))
        said += part
        if not part or connection not in self._strangers or len(said) > LINE_BYTES:
            self._turn_away(connection)  # closed, or speaks out of turn
        elif said.endswith(b"\n"):
            self._seat(connection, said)
        else:
            self._strangers[connection] = (said, until)

    def turn_away_silent(self) -> None:
        """Closes the connections that did not identify themselves in time."""
        now = time.monotonic()
        for connection in [c for c, (_, until) in self._strangers.items() if until < now]:
            self._turn_away(connection)

    def turn_away_strangers(self) -> None:
        """Closes all unidentified connections."""
        for connection in [*self._strangers]:
            self._turn_away(connection)

    def _seat(self, connection: socket.socket, line: bytes) -> None:
        try:
            message = parse(line)
            host = number_of_host(message.get("host"), self._hosts)
        except ValueError:
            return self._turn_away(connection)
        if message.get("run") != self._token:
            self._turn_away(connection, "host 0 is of another run")
        elif host == 0 or host in self.came:
            self._turn_away(connection, f"there is a host {host} already")
        else:
            del self._strangers[connection]
            self.came[host] = connection

    def _turn_away(self, connection: socket.socket, why: str = "") -> None:
        with contextlib.suppress(OSError):
            if why:
                send(connection, {"run": self._token, "refused": why})
        self._selector.unregister(connection)
        connection.close()
        self._strangers.pop(connection, None)
        self.came = {host: one for host, one in self.came.items() if one is not connection}


def _wait_for_all(port: int, hosts: int, token: str, deadline: float) -> dict[int, socket.socket]:
    """Accepts connections on host 0 until all hosts have come, or until the deadline."""
    try:
        listener = socket.create_server(("", port), backlog=max(hosts, MOST_STRANGERS))
    except OSError as error:
        raise UserError(
            f"host 0 of {hosts}: cannot listen on port {port} ({error.strerror}); is another run "
            "on it? --coordinator takes another port"
        ) from None
    with listener, selectors.DefaultSelector() as selector:
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ)
        reception = _Reception(hosts, token, selector)
        while len(reception.came) < hosts - 1 and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(min(left, RETRY_SECONDS)):
                if key.fileobj is not listener:
                    reception.hear(key.fileobj)  # pyright: ignore[reportArgumentType]
                    continue
                with contextlib.suppress(OSError):  # gone again
                    reception.let_in(listener.accept()[0])
            reception.turn_away_silent()
        reception.turn_away_strangers()
    for connection in reception.came.values():
        connection.settimeout(STRANGER_SECONDS)
    return reception.came


def _answer(peers: Mapping[int, socket.socket], message: Mapping[str, object]) -> None:
    for connection in peers.values():
        with contextlib.suppress(OSError):
            send(connection, message)


def _report(
    host: int,
    hosts: int,
    address: tuple[str, int],
    token: str,
    deadline: float,
    seconds: float,
) -> tuple[socket.socket, Sequence[int]]:
    """Reports to host 0; returns the connection and the missing hosts.

    Raises:
      UserError: host 0 did not answer in time, or refused this host until then.
    """
    why = "is host 0 up, and its port open?"
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError, ValueError):
            connection = stack.enter_context(socket.create_connection(address, timeout=left))
            send(connection, {"host": host, "run": token})
            # host 0 answers at its own deadline, which may be later than this one's
            answer = receive(connection, seconds=left + RETRY_SECONDS + STRANGER_SECONDS)
            if "refused" in answer:
                why = f"it says: {str(answer['refused'])[:100]}; {_SAME}"
            elif answer.get("run") == token:
                missing = [number_of_host(one, hosts) for one in _listed(answer.get("missing"))]
                stack.pop_all()
                return connection, missing
        time.sleep(RETRY_SECONDS)
    raise UserError(
        f"host {host} of {hosts}: could not reach {address[0]}:{address[1]} for {seconds:.0f} s; "
        f"{why}"
    )


def number_of_host(value: object, hosts: int) -> int:
    """Returns the host number that another host sent; ValueError if it is none of `hosts`."""
    if type(value) is not int or not 0 <= value < hosts:
        raise ValueError("no host's number")
    return value


def send(connection: socket.socket, message: Mapping[str, object]) -> None:
    """Writes one line of JSON."""
    connection.sendall(json.dumps(message).encode() + b"\n")


def receive(connection: socket.socket, *, seconds: float) -> dict:
    """Reads one line of JSON, and nothing after it.

    Raises:
      ValueError: the line is no JSON object, is too long, or had not ended when the other side
        closed or the time was up.
      OSError: the connection broke, or nothing came within the time that was left.
    """
    data, deadline = b"", time.monotonic() + seconds
    while not data.endswith(b"\n"):
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        seen = connection.recv(LINE_BYTES, socket.MSG_PEEK)
        if not seen or len(data) > LINE_BYTES or time.monotonic() > deadline:
            raise ValueError("no line")
        data += connection.recv(seen.find(b"\n") + 1 or len(seen))
    return parse(data)


def parse(line: bytes) -> dict:
    """Parses an untrusted line as a JSON object; ValueError if it is none."""
    try:
        message = json.loads(line)
    except RecursionError:
        message = None
    if not isinstance(message, dict):
        raise ValueError("no JSON object")
    return message


def _listed(value: object) -> Sequence[object]:
    if not isinstance(value, list):
        raise ValueError("no list")
    return value


_SAME = "start all hosts with the same config, --workdir and --hosts, each with its own --host"
