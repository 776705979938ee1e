"""kill -9 at random moments, and the run still ends bit for bit as one that nobody disturbed.

    python benchmarks/kills.py              # 20 kills, at least 5 of them inside a save
    python benchmarks/kills.py --kills 4

Trains a small language model on synthetic rows in a process of its own, saves every few steps, and
kills it: at a moment drawn at random, or (every third time) as soon as a save has begun. The same
command then goes on. Prints one JSON object a kill, and a last one with the count: a kill counts as
survived if the run went on from a step that is at most one interval older than the last that was
saved. Exit code 1 unless all were, and the final parameters equal those of an undisturbed run.
"""

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from speechlm_jax.lm.bench import BenchConfig, synthetic_rows
from speechlm_jax.lm.presets import preset
from speechlm_jax.lm.stage import make_stage
from speechlm_jax.train import checkpoints
from speechlm_jax.train.loop import TrainConfig, fit
from speechlm_jax.train.optimizer import OptimizerConfig
from speechlm_jax.vocab import Vocab

ROWS, LENGTH, VOCAB = 4, 128, 512
SAVE_EVERY = 5


def train(workdir: Path, total_steps: int) -> None:
    """The run that is killed: batches are a function of the rows seen."""

    def batches(rows_seen: int):
        while True:
            config = BenchConfig(rows=ROWS, length=LENGTH, seed=rows_seen)
            yield synthetic_rows(config, VOCAB)
            rows_seen += ROWS

    model = preset("tiny", vocab_size=VOCAB, dtype="float32", remat="none")
    vocab = Vocab(VOCAB // 2, VOCAB // 4, 12.5, "none", "none", num_spare=0)
    stage = make_stage(model, vocab, ("synthetic",), batches)
    config = TrainConfig(
        total_steps=total_steps,
        optimizer=OptimizerConfig(warmup_steps=10),
        log_every_steps=5,
        save_every_steps=SAVE_EVERY,
    )
    fit(stage, config, workdir)


def digest(workdir: Path) -> str:
    """Identity of the trained parameters, bit by bit."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(checkpoints.load_params(workdir).params):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs and kills."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2000, help="of the run (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.train:
        train(args.train, args.steps)
        return 0
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as top:
        whole, killed = Path(top) / "whole", Path(top) / "killed"
        _start(whole, args.steps).wait()
        results = [_kill(killed, args.steps, n, moments) for n in range(args.kills)]
        _start(killed, args.steps).wait()
        survived = sum(result["survived"] for result in results)
        same = digest(whole) == digest(killed)
        inside = sum(result["inside_a_save"] for result in results)
    print(json.dumps({"kills": args.kills, "inside_a_save": inside, "survived": survived,
                      "bit_identical": same}))  # fmt: skip
    return int(survived < args.kills or not same)


def _start(workdir: Path, steps: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--train", str(workdir), "--steps", str(steps)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _kill(workdir: Path, steps: int, number: int, moments: random.Random) -> dict[str, object]:
    """Starts, waits until a step has been saved, and kills at a random moment or inside a save."""
    folder = workdir / checkpoints.FOLDER
    before = checkpoints.steps(folder)
    process = _start(workdir, steps)
    while process.poll() is None and checkpoints.steps(folder) == before:
        time.sleep(0.002)
    if number % 3 == 0:
        while process.poll() is None and not _saving(folder):
            time.sleep(0.0005)
    else:
        time.sleep(moments.uniform(0.0, 1.0))
    process.kill()
    process.wait()
    saved = checkpoints.steps(folder)
    inside = _saving(folder)
    good = checkpoints.latest_good(workdir)
    kept = -1 if good is None else int(good.name)
    result = {
        "kill": number,
        "newest_saved": saved[-1] if saved else None,
        "goes_on_from": kept,
        "inside_a_save": inside,
        "survived": bool(saved) and kept >= saved[-1] - SAVE_EVERY,
    }
    print(json.dumps(result), flush=True)
    return result


def _saving(folder: Path) -> bool:
    """Whether a checkpoint is there that is not finished."""
    finished = {f"{step:08d}" for step in checkpoints.steps(folder)}
    return any(path.is_dir() and path.name not in finished for path in folder.iterdir())


if __name__ == "__main__":
    sys.exit(main())
