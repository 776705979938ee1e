"""Wall and CPU seconds of each step, summed over restarts, including those ended by `kill -9`."""

import os
import resource
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from speechlm_jax import artifacts

BEAT_SECONDS = 2.0


def cpu_seconds() -> float:
    """Returns the CPU seconds of this process and of its finished children."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))


@contextmanager
def timed(folder: Path, step: str) -> Iterator[None]:
    """Records the seconds that the block takes as one sitting of `step`, in a file in `folder`.

    The file is rewritten every `BEAT_SECONDS` and at the end of the block.
    """
    path = folder / f"{step}.{uuid.uuid4().hex[:8]}.json"
    wall, cpu = time.perf_counter(), cpu_seconds()
    stop = threading.Event()

    def write() -> None:
        record = {
            "step": step,
            "wall_seconds": time.perf_counter() - wall,
            "cpu_seconds": cpu_seconds() - cpu,
            "process": os.getpid(),
        }
        artifacts.write_json(path, record)

    def beat() -> None:
        while not stop.wait(BEAT_SECONDS):
            write()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        write()


def totals(folder: Path) -> dict[str, dict[str, float]]:
    """Returns, for each step, its seconds summed over all sittings and the number of sittings."""
    sums: dict[str, dict[str, float]] = defaultdict(
        lambda: {"wall_seconds": 0.0, "cpu_seconds": 0.0, "sittings": 0}
    )
    for path in sorted(folder.glob("*.json"), key=lambda p: p.stat().st_mtime):
        record = artifacts.read_json(path)
        total = sums[record["step"]]
        total["wall_seconds"] += record["wall_seconds"]
        total["cpu_seconds"] += record["cpu_seconds"]
        total["sittings"] += 1
    return dict(sums)
