"""Joins the hosts of a run: missing hosts are named, and no host waits forever.

JAX runs the cluster: every host connects to the coordinator (host 0), which checks heartbeats. When
a host dies or fails, its sentinel tells the others, which end at once and name it; where the
sentinels cannot (sentinel.py), the hosts end within the heartbeat's timeout. A restart resumes from
the last checkpoint, also on fewer hosts.
"""

import atexit
import contextlib
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from speechlm_jax.errors import EXIT_BUG, EXIT_USAGE, Stopped, UserError
from speechlm_jax.train.cluster_config import ClusterConfig
from speechlm_jax.train.logs import info
from speechlm_jax.train.rendezvous import keep_alive, meet
from speechlm_jax.train.sentinel import Sentinel


@contextlib.contextmanager
def join(config: ClusterConfig) -> Iterator[None]:
    """Connects this process to the other hosts while the context lasts; a no-op for one host.

    Must precede any other use of JAX, and happen only once in a process. An exception other than
    `Stopped` also ends the other hosts.

    Raises:
      UserError: not all hosts came; the message names the missing ones.
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
        # Exits once the error is shown; JAX would wait for the others and end in a C++ stack trace.
        atexit.register(_exit, EXIT_USAGE if isinstance(error, UserError) else EXIT_BUG)
        raise
    sentinel.ended()


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
