"""One host of a cluster: cluster_host.py HOSTS HOST PORT WORKDIR STEPS START_SECONDS."""

import dataclasses
import logging
import sys
import time

import jax
from toy_stage import CONFIG, ROWS, batches, make_stage

from speechlm_jax.errors import EXIT_USAGE, UserError
from speechlm_jax.train.cluster import ClusterConfig, join
from speechlm_jax.train.loop import fit


def main(hosts: int, host: int, port: int, workdir: str, steps: int, start_seconds: int) -> int:
    jax.config.update("jax_num_cpu_devices", 4 // hosts)
    jax.config.update("jax_platforms", "cpu")
    address = f"localhost:{port}"
    try:
        join(ClusterConfig(hosts, host, address, start_seconds, heartbeat_seconds=10))
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    mine = slice(host * ROWS // hosts, (host + 1) * ROWS // hosts)

    def rows(rows_seen):
        for batch in batches(rows_seen):
            time.sleep(0.02 * (hosts > 1))  # time to be killed in
            yield {name: values[mine] for name, values in batch.items()}

    logging.basicConfig(level=logging.INFO)
    fit(make_stage(batches=rows), dataclasses.replace(CONFIG, total_steps=steps), workdir)
    return 0


if __name__ == "__main__":
    hosts, host, port = map(int, sys.argv[1:4])
    sys.exit(main(hosts, host, port, sys.argv[4], int(sys.argv[5]), int(sys.argv[6])))
