"""Joining the hosts of a run: who is missing is named, and nobody waits for ever.

JAX runs the cluster: every host connects to the coordinator (host 0), which checks heartbeats. When
a host dies or fails, its sentinel tells the others, which end at once and name it; where the
sentinels cannot (sentinel.py), they end within the heartbeat's time-out. A restart goes on from the
last checkpoint, on fewer hosts too.
"""

import atexit
import contextlib
import dataclasses
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from speechlm_jax.errors import EXIT_BUG, EXIT_USAGE, Stopped, UserError
from speechlm_jax.train.logs import info
from speechlm_jax.train.rendezvous import keep_alive, meet
from speechlm_jax.train.sentinel import Sentinel

PORT = 8476  # JAX's own before 0.8.1; firewalls of older slices know it


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """The hosts of a run.

    Attributes:
      hosts: how many; 0 asks the machine (Cloud TPU, Slurm), 1 is a run of its own.
      host: which of them this is.
      coordinator: address of host 0, with a port.
      start_seconds: how long hosts wait for each other at the start.
      heartbeat_seconds: after which a host that is not heard of is dead, and the others end.
      run: names the run, the same on all hosts: hosts of another run get no seat in this one.
    """

    hosts: int = 1
    host: int = 0
    coordinator: str = f"localhost:{PORT}"
    start_seconds: int = 1800
    heartbeat_seconds: int = 100
    run: str = ""

    def __post_init__(self) -> None:
        if self.hosts < 0 or not 0 <= self.host < max(self.hosts, 1):
            raise UserError(f"host {self.host} of {self.hosts}: hosts are counted from 0")
        port = self.coordinator.rpartition(":")[2]
        is_port = port.isascii() and port.isdigit() and 0 < int(port[:6]) < 2**16
        if ":" not in self.coordinator or not is_port:
            raise UserError(f"coordinator {self.coordinator}: give HOST:PORT, e.g. 10.0.0.2:{PORT}")


@contextlib.contextmanager
def join(config: ClusterConfig) -> Iterator[None]:
    """Connects this process with the others while the context lasts; a no-op for one host.

    Must come before anything else that JAX does, and only once in a process. An exception other
    than `Stopped` ends the other hosts too.

    Raises:
      UserError: not all hosts came; those that are missing are named.
    """
    if config.hosts == 1:
        yield
        return
    peers: Mapping[int, socket.socket] = {}
    given: dict[str, Any] = {
        "initialization_timeout": config.start_seconds,
        "heartbeat_timeout_seconds": config.heartbeat_seconds,
    }
    if config.hosts > 1:
        given |= {
            "coordinator_address": config.coordinator,
            "num_processes": config.hosts,
            "process_id": config.host,
        }
        peers = meet(
            config.host,
            config.hosts,
            config.coordinator,
            seconds=config.start_seconds,
            run=config.run,
        )
        for connection in peers.values():
            keep_alive(connection, config.heartbeat_seconds)
    sentinel = Sentinel(config.host, config.hosts, peers)
    try:
        if getattr(jax.config, "jax_platforms", None) == "cpu":
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(**given)
        info("%d hosts, %d devices", jax.process_count(), jax.device_count())
        yield
    except Stopped:
        sentinel.ended()
        raise
    except BaseException as error:
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        sentinel.failed(said.partition("\n")[0])
        # after the error is shown; JAX would wait for the others, and end in a stack of C++
        atexit.register(_exit, EXIT_USAGE if isinstance(error, UserError) else EXIT_BUG)
        raise
    sentinel.ended()


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
