"""One signal asks, a second SIGINT leaves at once, and the handlers go back where they were."""

import os
import signal
import subprocess
import sys

from speechlm_jax.errors import EXIT_STOPPED
from speechlm_jax.train.signals import StopSignal


def test_one_signal_asks():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert not stop.should_stop(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.should_stop(2)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_sigint_leaves_at_once():
    code = (
        "import os, signal\n"
        "from speechlm_jax.train.signals import StopSignal\n"
        "with StopSignal():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == EXIT_STOPPED and not done.stdout
