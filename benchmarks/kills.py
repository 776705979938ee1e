"""kill -9 of a training at random moments: it must end bit for bit like an undisturbed run.

    python benchmarks/kills.py              # 20 kills, a third of them at the start of a save
    python benchmarks/kills.py --kills 4
    python benchmarks/kills.py --hosts 4    # one of four processes, drawn at random, is killed

Trains a small language model on synthetic rows in a process of its own, which saves every few steps
and is killed at a random moment or (every third time) as soon as a save has begun. The same command
then continues. Prints one JSON object for each kill, and a last one with the counts. A kill is
survived if the run had not ended before, the newest good checkpoint is at most one interval older
than the last finished one, and (with several hosts) the others end by themselves within
END_SECONDS. Exit code 1 unless all kills are survived and the final parameters equal those of an
undisturbed run.
"""

import argparse
import dataclasses
import hashlib
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from speechlm_jax.lm.bench import BenchConfig, synthetic_rows, synthetic_stage
from speechlm_jax.lm.presets import preset
from speechlm_jax.sharding import make_mesh, row_part
from speechlm_jax.train import checkpoint_folder, checkpoints
from speechlm_jax.train.cluster import ClusterConfig, join
from speechlm_jax.train.loop import TrainConfig, fit
from speechlm_jax.train.optimizer import OptimizerConfig

ROWS, LENGTH, VOCAB = 4, 128, 512
SAVE_EVERY = 5
END_SECONDS = 30.0  # limit for the other hosts to end after one was killed


def train(workdir: Path, total_steps: int, cluster: ClusterConfig) -> None:
    """Runs one host of the training; its batches are a function of the rows seen."""
    if cluster.hosts > 1:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", 1)
    with join(cluster):
        _fit(workdir, total_steps)


def _fit(workdir: Path, total_steps: int) -> None:
    part = row_part(make_mesh(TrainConfig(total_steps).mesh))
    mine = slice(part.index * ROWS // part.count, (part.index + 1) * ROWS // part.count)

    def batches(rows_seen: int):
        while True:
            config = BenchConfig(rows=ROWS, length=LENGTH, seed=rows_seen)
            yield {name: x[mine] for name, x in synthetic_rows(config, VOCAB).items()}
            rows_seen += ROWS

    model = preset("tiny", vocab_size=VOCAB, dtype="float32", remat="none")
    stage = dataclasses.replace(synthetic_stage(model), batches=batches)
    config = TrainConfig(
        total_steps=total_steps,
        optimizer=OptimizerConfig(warmup_steps=10),
        log_every_steps=5,
        save_every_steps=SAVE_EVERY,
    )
    fit(stage, config, workdir)


def digest(workdir: Path) -> str:
    """Returns a SHA-256 of the bytes of the trained parameters."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(checkpoints.load_params(workdir).params):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs and kills the training; returns exit code 1 if a kill is not survived."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2000, help="of the run (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--hosts", type=int, default=1, choices=(1, 2, 4), help="processes")
    for name, kind in (("--train", Path), ("--host", int), ("--port", int)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.train:
        address = f"localhost:{args.port}"
        train(args.train, args.steps, ClusterConfig(args.hosts, args.host, address, 120, 20))
        return 0
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as top:
        whole, killed = Path(top) / "whole", Path(top) / "killed"
        _wait(_start(whole, args.steps, args.hosts))
        results = [_kill(killed, args.steps, args.hosts, n, moments) for n in range(args.kills)]
        _wait(_start(killed, args.steps, args.hosts))
        survived = sum(result["survived"] for result in results)
        same = digest(whole) == digest(killed)
        inside = sum(result["inside_a_save"] for result in results)
    print(json.dumps({"hosts": args.hosts, "kills": args.kills, "inside_a_save": inside,
                      "survived": survived, "bit_identical": same}))  # fmt: skip
    return int(survived < args.kills or not same)


def _start(workdir: Path, steps: int, hosts: int) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    given = {"--train": workdir, "--steps": steps, "--hosts": hosts, "--port": port}
    command = [sys.executable, __file__, *(str(x) for pair in given.items() for x in pair)]
    return [
        subprocess.Popen(
            [*command, "--host", str(host)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for host in range(hosts)
    ]


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.wait():
            raise RuntimeError(f"a run ended with {process.returncode}")


def _running(processes: Sequence[subprocess.Popen[bytes]]) -> bool:
    return all(process.poll() is None for process in processes)


def _kill(
    workdir: Path, steps: int, hosts: int, number: int, moments: random.Random
) -> dict[str, object]:
    """Starts a run, waits for a new checkpoint, and kills it at random or inside a save."""
    folder = workdir / checkpoint_folder.FOLDER
    before = checkpoint_folder.steps(folder)
    processes = _start(workdir, steps, hosts)
    victim = moments.randrange(hosts)
    while _running(processes) and checkpoint_folder.steps(folder) == before:
        time.sleep(0.002)
    if number % 3 == 0:
        while _running(processes) and not _saving(folder):
            time.sleep(0.0005)
    else:
        time.sleep(moments.uniform(0.0, 1.0))
    alive = _running(processes)  # the run must not have ended before
    processes[victim].kill()
    seconds = _seconds_to_end(processes)
    saved = checkpoint_folder.steps(folder)
    inside = _saving(folder)
    good = checkpoints.latest_good(workdir)
    kept = -1 if good is None else int(good.name)
    result = {
        "kill": number,
        "host": victim,
        "others_ended_after_seconds": None if hosts == 1 else seconds,
        "newest_saved": saved[-1] if saved else None,
        "goes_on_from": kept,
        "inside_a_save": inside,
        "survived": (
            alive and seconds < END_SECONDS and bool(saved) and kept >= saved[-1] - SAVE_EVERY
        ),
    }
    print(json.dumps(result), flush=True)
    return result


def _seconds_to_end(processes: Sequence[subprocess.Popen[bytes]]) -> float:
    """Returns the seconds until all have ended; kills the others after END_SECONDS."""
    began = time.monotonic()
    while any(process.poll() is None for process in processes):
        if time.monotonic() - began > END_SECONDS:
            for process in processes:
                process.kill()
        time.sleep(0.01)
    return round(time.monotonic() - began, 2)


def _saving(folder: Path) -> bool:
    """Returns whether there is an unfinished checkpoint."""
    finished = {f"{step:08d}" for step in checkpoint_folder.steps(folder)}
    return folder.is_dir() and any(
        path.is_dir() and path.name not in finished for path in folder.iterdir()
    )


if __name__ == "__main__":
    sys.exit(main())
