"""Tokens a second that one core reads and assembles into batches of packed rows.

    python benchmarks/loader.py                     # rows of 8,192 ids, 1 to 8 simulated hosts
    python benchmarks/loader.py --latency-ms 50     # the same rows from a simulated bucket

Writes shards of synthetic rows (three tasks, a vocabulary of 168,960 ids), makes a plan over them,
and reads batches on one core as one host of 1, 2, 4 and 8 does. Prints one JSON object for each
number of hosts. Exit code 1 if a host reads fewer than 10 million tokens a second.

With `--latency-ms`, the rows are in a simulated bucket: a folder behind fsspec's asynchronous
interface, in which each request takes so long. A host keeps at most `--disk-gb` (less than the
rows) on disk; the disk's use is measured after each batch. There is no network, so the figures are
not the speed of a real bucket.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import fsspec
from fsspec.asyn import AsyncFileSystem

from speechlm_jax.data.bucket_rows import RowFetcher
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
    """Writes three tasks of random rows and returns their shards."""
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


class Pail(AsyncFileSystem):
    """A folder as a simulated bucket: each request takes `latency_seconds`."""

    protocol = "pail"
    latency_seconds = 0.0

    async def _cat_file(self, path, start=None, end=None, **options):
        await asyncio.sleep(self.latency_seconds)
        with open(self._strip_protocol(path), "rb") as file:
            file.seek(start or 0)
            return file.read() if end is None else file.read(end - (start or 0))

    async def _ls(self, path, detail=True, **options):
        found = Path(self._strip_protocol(path)).iterdir()
        return [{"name": str(file), "size": file.stat().st_size} for file in found]


def measure_pail(folder: Path, hosts: int, disk_gb: float) -> dict[str, float]:
    """Returns `measure` of rows read by address, and the most use of the disk in 10^9 bytes."""
    fetcher = RowFetcher(disk_gb=disk_gb, folder=folder / "cache")
    tasks = [path.name for path in folder.iterdir() if path.name != "cache"]
    shards = {task: RowShards(f"pail://{folder}/{task}", fetcher=fetcher) for task in tasks}
    most = 0

    def look() -> None:
        nonlocal most
        blocks = sum(path.stat().st_blocks for path in fetcher.cache.folder.rglob("*"))
        most = max(most, blocks * 512)

    found = measure(shards, hosts, then=look)
    fetcher.close()
    return found | {"disk_gb": most / 1e9, "limit_gb": disk_gb}


def measure(
    shards: dict[str, RowShards], hosts: int, *, then: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Measures reading one host's part of batches of `hosts` times `BATCH` rows.

    `then` is called after each batch.
    """
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
        then()
    return {"hosts": hosts, "tokens_per_second": round(1 / statistics.median(seconds))}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures on one core; returns exit code 1 if it is too slow."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--latency-ms", type=float, help="read by address, requests take so long")
    parser.add_argument("--disk-gb", type=float, default=0.016, help="with it (default: 0.016)")
    args = parser.parse_args(arguments)
    if args.latency_ms is not None:
        Pail.latency_seconds = args.latency_ms / 1000
        fsspec.register_implementation("pail", Pail)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    slowest = float("inf")
    with tempfile.TemporaryDirectory() as top:
        shards = make_shards(Path(top))
        for hosts in HOSTS:
            if args.latency_ms is None:
                found = measure(shards, hosts)
            else:
                found = measure_pail(Path(top), hosts, args.disk_gb)
            slowest = min(slowest, found["tokens_per_second"])
            print(json.dumps(found), flush=True)
    return int(slowest < WANTED)


if __name__ == "__main__":
    sys.exit(main())
