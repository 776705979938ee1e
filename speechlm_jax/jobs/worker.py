"""The process behind `speechlm_jax.jobs.pool`: reads a job, then shard numbers until stdin ends."""

import functools
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from speechlm_jax.errors import UserError
from speechlm_jax.jobs.commit import ShardFolder
from speechlm_jax.jobs.shards import ShardTask


def main() -> None:
    """Runs the shards whose numbers it reads; answers each with one JSON line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    # Answers have their own descriptor, so that a library that prints does not break the protocol.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    task = ShardTask(job["target"], job["arguments"])
    place = ShardFolder(Path(job["folder"]), job["fingerprint"])
    for line in sys.stdin:
        answer = _answer(task, int(line), place)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _answer(task: ShardTask, number: int, place: ShardFolder) -> dict[str, Any]:
    try:
        place.make(number, functools.partial(task, number))
        return {"done": number}
    except UserError as error:
        return {"user_error": str(error)}
    except Exception:
        return {"error": traceback.format_exc()}


if __name__ == "__main__":
    main()
