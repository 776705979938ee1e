"""Joining the hosts of a run: who is missing is named, and nobody waits for ever.

JAX runs the cluster: every host connects to the coordinator (host 0), which checks heartbeats. When
a host dies or fails, its sentinel tells the others, which end at once and name it; where the
sentinels cannot (sentinel.py), they end within the heartbeat's time-out. A restart goes on from the
last checkpoint, on fewer hosts too.
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
