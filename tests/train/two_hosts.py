"""One of two hosts that train the toy stage: two_hosts.py RANK PORT WORKDIR SIGNAL_AT_STEP."""

import os
import signal
import sys
import time

import jax
from toy_stage import CONFIG, ROWS, batches, make_stage

from speechlm_jax.errors import EXIT_STOPPED, Stopped
from speechlm_jax.train.loop import fit
from speechlm_jax.train.stage import Evaluation


def main(rank: int, port: int, workdir: str, signal_at_step: int) -> int:
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, rank)
    mine = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)

    def rows(rows_seen):
        for batch in batches(rows_seen):
            time.sleep(0.02)  # the notice of a signal takes a moment to reach both hosts
            yield {name: values[mine] for name, values in batch.items()}

    def interrupt(state):
        if rank == 1 and state.step == signal_at_step:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    evaluation = Evaluation("interrupt", 1, interrupt)
    try:
        fit(make_stage(batches=rows, evals=(evaluation,)), CONFIG, workdir)
    except Stopped:
        return EXIT_STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
