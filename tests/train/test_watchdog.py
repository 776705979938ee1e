"""Stacks are written while nothing ends, and only then."""

import subprocess
import sys
import time

from speechlm_jax.train.watchdog import Watchdog


def test_a_hang_shows_its_stacks_and_a_living_run_none(tmp_path):
    path = tmp_path / "stacks.txt"
    with open(path, "w", encoding="utf-8") as file:
        with Watchdog(0.3, file=file) as watchdog:
            for _ in range(5):
                time.sleep(0.1)
                watchdog.alive()
            assert path.read_text(encoding="utf-8") == ""
            time.sleep(0.5)
        said = path.read_text(encoding="utf-8")
        assert "test_a_hang_shows_its_stacks_and_a_living_run_none" in said
        time.sleep(0.4)
        assert path.read_text(encoding="utf-8") == said, "it is off outside"


def test_zero_seconds_never_write(tmp_path):
    path = tmp_path / "stacks.txt"
    with open(path, "w", encoding="utf-8") as file, Watchdog(0.0, file=file) as watchdog:
        watchdog.alive()
        time.sleep(0.2)
    assert path.read_text(encoding="utf-8") == ""


def test_with_end_the_process_ends_after_its_stacks():
    code = (
        "import time\n"
        "from speechlm_jax.train.watchdog import Watchdog\n"
        "with Watchdog(0.2, end=True):\n"
        "    time.sleep(30)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 1 and "most recent call first" in done.stderr
