"""Runs shard tasks in worker processes, which speak JSON lines and are replaced when they die.

Not `multiprocessing`: its children import the parent's main module again (and with it JAX), or are
forked from a process that has JAX's threads. These workers import only what their task needs.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from speechlm_jax.errors import UserError

ATTEMPTS = 3  # a worker that dies (out of memory, a signal) is replaced, and its shard retried


class WorkerDied(Exception):
    """Raised if the process ended without an answer."""


class Worker:
    """A process that runs the shards of one job (`speechlm_jax.jobs.worker`)."""

    def __init__(self, job: dict[str, Any]):
        # Two workers on two cores: many BLAS threads in each would only compete.
        single = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        paths = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "speechlm_jax.jobs.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**single, **os.environ, "PYTHONPATH": paths},
        )
        self._send(job)

    def run(self, number: int) -> None:
        """Runs one shard.

        Raises:
          UserError, RuntimeError: the task raised an error.
          WorkerDied: no answer came.
        """
        self._send(number)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerDied(f"exit status {self._process.wait()}")
        answer = json.loads(line)
        if "user_error" in answer:
            raise UserError(answer["user_error"])
        if "error" in answer:
            raise RuntimeError(f"shard {number} failed in a worker:\n{answer['error']}")

    def kill(self) -> None:
        """Ends the process; leaves its current shard undone."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _send(self, data: Any) -> None:
        assert self._process.stdin is not None
        # `run` notices a dead worker by the missing answer.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(data).encode() + b"\n")
            self._process.stdin.flush()


def run(job: dict[str, Any], numbers: Sequence[int], *, workers: int) -> Iterator[int]:
    """Runs these shards in `workers` processes; yields each number when it is done, in any order.

    The first error ends all workers and is raised here.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in numbers:
        waiting.put(number)
    finished: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()
    lanes = [_Lane(job, waiting, finished) for _ in range(workers)]
    try:
        for lane in lanes:
            lane.start()
        for _ in numbers:
            item = finished.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        for lane in lanes:
            lane.stop()


class _Lane(threading.Thread):
    """A thread that feeds one worker from the queue, and replaces it when it dies."""

    def __init__(
        self,
        job: dict[str, Any],
        waiting: "queue.SimpleQueue[int]",
        finished: "queue.SimpleQueue[int | BaseException]",
    ):
        super().__init__(daemon=True)
        self._job, self._waiting, self._finished = job, waiting, finished
        self._stopped = False
        self._worker = Worker(job)

    def run(self) -> None:
        try:
            while not self._stopped:
                number = self._waiting.get_nowait()
                self._attempt(number)
                self._finished.put(number)
        except queue.Empty:
            return
        except BaseException as error:  # raised where the caller waits
            self._finished.put(error)

    def stop(self) -> None:
        """Ends the worker, and waits for the thread."""
        self._stopped = True
        self._worker.kill()
        self.join()
        self._worker.kill()

    def _attempt(self, number: int) -> None:
        reason = ""
        for _ in range(ATTEMPTS):
            try:
                return self._worker.run(number)
            except WorkerDied as error:
                reason = str(error)
                if self._stopped:
                    break
                self._worker.kill()
                self._worker = Worker(self._job)
        raise RuntimeError(f"the worker of shard {number} died {ATTEMPTS} times ({reason})")
