"""Two processes as two hosts: a signal to one saves the same step on both, and the run goes on."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from toy_stage import CONFIG, make_stage

from speechlm_jax.errors import EXIT_STOPPED
from speechlm_jax.train import checkpoints
from speechlm_jax.train.loop import fit


def run_hosts(workdir, *, signal_at_step):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "XLA_FLAGS": ""}
    script = str(Path(__file__).with_name("two_hosts.py"))
    hosts = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(port), str(workdir), str(signal_at_step)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    errors = [host.communicate(timeout=120)[1] for host in hosts]
    return [host.returncode for host in hosts], "\n".join(errors)


@pytest.mark.slow
def test_a_signal_to_one_host_stops_both_and_the_next_run_ends_as_on_one(tmp_path):
    codes, errors = run_hosts(tmp_path / "two", signal_at_step=3)
    assert codes == [EXIT_STOPPED, EXIT_STOPPED], errors
    stopped_at = checkpoints.steps(tmp_path / "two/checkpoints")[-1]
    assert 3 < stopped_at < CONFIG.total_steps
    codes, errors = run_hosts(tmp_path / "two", signal_at_step=0)
    assert codes == [0, 0], errors
    one = fit(make_stage(), CONFIG, tmp_path / "one")
    two = checkpoints.load_params(tmp_path / "two")
    assert two.meta.step == CONFIG.total_steps and two.meta.rows_seen == 8 * CONFIG.total_steps
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), two.params, one.params
    )
