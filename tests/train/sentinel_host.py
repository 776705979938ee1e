"""A trainer that does nothing: sentinel_host.py HOST HOSTS PORT WHAT, and "up" once it is watched.

WHAT: sleeps, ends (well, after a moment), fails, dies.
"""

import os
import signal
import sys
import time

from speechlm_jax.train.rendezvous import keep_alive, meet
from speechlm_jax.train.sentinel import Sentinel


def main(host, hosts, port, what):
    peers = meet(host, hosts, f"localhost:{port}", seconds=30)
    for connection in peers.values():
        keep_alive(connection, 10)
    sentinel = Sentinel(host, hosts, peers)
    print("up", flush=True)
    if what == "sleeps":
        time.sleep(60)
    elif what == "fails":
        sentinel.failed("no rows")
        return 2
    elif what == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2 * host)
    sentinel.ended()
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:4]), sys.argv[4]))
