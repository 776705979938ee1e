"""One host of a cluster: cluster_host.py WHAT WORKDIR HOSTS HOST PORT.

WHAT: `all`, the toy stage, a language model, and the toy stage until host 1 gets SIGTERM, one after
the other; `long`, the toy stage for LONG_STEPS; `fails`, the same, and host 1's batches end.
"""

import dataclasses
import logging
import os
import signal
import sys
import time
from itertools import islice
from pathlib import Path

import jax
import toy_language_model
import toy_stage

from speechlm_jax.errors import EXIT_STOPPED, EXIT_USAGE, Stopped, UserError
from speechlm_jax.sharding import MeshConfig, make_mesh, row_part
from speechlm_jax.train.cluster import ClusterConfig, join
from speechlm_jax.train.loop import fit
from speechlm_jax.train.stage import Evaluation

LONG_STEPS = 300
SIGNAL_AT_STEP = 3
# both hosts of two hold parts of all parameters and read the same rows
SPANNING = MeshConfig(fsdp=1, tensor=4)


def train_toy(workdir, *, seconds=0.0, num_batches=None, evals=None, **changes):
    config = dataclasses.replace(toy_stage.CONFIG, **changes)
    part = row_part(make_mesh(config.mesh))
    size = toy_stage.ROWS // part.count
    mine = slice(part.index * size, (part.index + 1) * size)

    def rows(rows_seen):
        for batch in islice(toy_stage.batches(rows_seen), num_batches):
            time.sleep(seconds)
            yield {name: values[mine] for name, values in batch.items()}

    given = {"batches": rows} | ({} if evals is None else {"evals": evals})
    fit(toy_stage.make_stage(**given), config, workdir)


def train_all(workdir, host):
    train_toy(workdir / "toy", save_every_steps=12)  # a save takes half a second
    config = toy_language_model.CONFIG
    part = row_part(make_mesh(config.mesh))
    fit(toy_language_model.make_language_model(part), config, workdir / "lm")

    def interrupt(state):
        if host == 1 and state.step == SIGNAL_AT_STEP:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    # the notice of a signal takes a moment to reach both hosts
    interruption = (Evaluation("interrupt", 1, interrupt),)
    train_toy(workdir / "stopped", seconds=0.05, evals=interruption, mesh=SPANNING)


def main(what, workdir, hosts, host, port):
    jax.config.update("jax_num_cpu_devices", 4 // hosts)
    jax.config.update("jax_platforms", "cpu")
    logging.basicConfig(level=logging.WARNING, force=True)  # a library has set it up already
    logging.getLogger("speechlm").setLevel(logging.INFO)
    cluster = ClusterConfig(hosts, host, f"localhost:{port}", 60, heartbeat_seconds=10)
    try:
        with join(cluster):
            if what == "all":
                train_all(workdir, host)
            else:
                num_batches = 10 if what == "fails" and host == 1 else None
                seconds = 0.02 if hosts > 1 else 0.0  # time to be killed in
                train_toy(workdir, seconds=seconds, num_batches=num_batches, total_steps=LONG_STEPS)
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])))
