"""Tokens a second that one core reads, assembles and hands over as batches of packed rows.

    python benchmarks/loader.py                     # rows of 8,192 ids, 1 to 8 simulated hosts

Writes shards of synthetic rows (three tasks, a vocabulary of 168,960 ids), makes a plan over them,
and reads batches as one host of 1, 2, 4 and 8 does, on one core. Prints one JSON object a number of
hosts. Exit code 1 if a host reads fewer than 10 million tokens a second.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from speechlm_jax.data.mixture import task_rows
from speechlm_jax.data.packing import Row
from speechlm_jax.data.rows import RowFile, RowShards, write_row_manifest, write_rows
from speechlm_jax.data.shares import PhaseSpec, make_plan, rest
from speechlm_jax.data.stream import make_batches
from speechlm_jax.lm.bench import BenchConfig, synthetic_rows
from speechlm_jax.vocab import Vocab

LENGTH, BATCH, BATCHES = 8192, 64, 6
ROWS_A_TASK = 512
HOSTS = (1, 2, 4, 8)
WANTED = 10e6  # tokens a second
VOCAB = Vocab(151_552, 16_384, 12.5, "none", "none")


def make_shards(folder: Path) -> dict[str, RowShards]:
    """Three tasks of random rows; text of some bytes an id, as real ids have."""
    shards = {}
    for number, task in enumerate(("text", "speech", "interleaved")):
        batch = synthetic_rows(
            BenchConfig(rows=ROWS_A_TASK, length=LENGTH, seed=number), VOCAB.size
        )
        rows = (
            Row(
                batch["ids"][i],
                batch["segments"][i],
                batch["positions"][i],
                batch["loss_mask"][i] > 0,
            )
            for i in range(ROWS_A_TASK)
        )
        path = folder / task / "rows.array_record"
        counts = write_rows(path, rows, vocab=VOCAB, length=LENGTH)
        write_row_manifest(
            folder / task, [RowFile(path.name, counts.rows, path.stat().st_size)], task=task,
            split="train", vocab=VOCAB, length=LENGTH, counts=dataclasses.asdict(counts),
            inputs={}, config={}, seed=number,
        )  # fmt: skip
        shards[task] = RowShards(folder / task)
    return shards


def measure(shards: dict[str, RowShards], hosts: int) -> dict[str, float]:
    """One host's part of batches of `hosts` times as many rows."""
    tasks = task_rows(shards)
    phase = PhaseSpec("train", {task.name: rest() for task in tasks}, rows=10**6)
    batches = make_batches(
        make_plan(tasks, [phase]), shards, batch_size=BATCH * hosts, process_count=hosts
    )
    seconds, found = [], batches(0)
    next(found)  # opens the files
    for _ in range(BATCHES):
        began = time.perf_counter()
        tokens = sum(batch["ids"].size for batch in islice(found, 1))
        seconds.append((time.perf_counter() - began) / tokens)
    return {"hosts": hosts, "tokens_per_second": round(1 / statistics.median(seconds))}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures on one core; exit code 1 if it is too slow."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(arguments)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    slowest = float("inf")
    with tempfile.TemporaryDirectory() as top:
        shards = make_shards(Path(top))
        for hosts in HOSTS:
            found = measure(shards, hosts)
            slowest = min(slowest, found["tokens_per_second"])
            print(json.dumps(found), flush=True)
    return int(slowest < WANTED)


if __name__ == "__main__":
    sys.exit(main())
