"""kill -9 of `speechlm tokenize` at random moments, in two parts side by side.

    python benchmarks/tokenize_kills.py                # 20 kills, at least 5 inside a write
    python benchmarks/tokenize_kills.py --kills 4

Recordings of noise, an untrained tokenizer. Two processes make a part each; one of them is killed
at a random moment or (every third time) as soon as a file is half written, and starts again. Prints
one JSON object: kills, those that left a half-written file, and whether the joined output equals,
byte for byte, that of one process that nobody killed. Exit code 1 unless it does.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

CLIPS, PARTS, SHARD_ROWS = 160, 2, 2
INSIDE = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Kills parts of a job, and compares its output."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--part", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.work:
        run_part(args.work, *args.part)
        return 0
    with tempfile.TemporaryDirectory() as top:
        told = kill(Path(top), args.kills, random.Random(args.seed))
    print(json.dumps(told))
    return int(not told["same_bytes"] or told["inside_a_write"] < min(INSIDE, args.kills // 4))


def make_inputs(top: Path) -> None:
    """Writes recordings, and a run with an untrained tokenizer."""
    import jax

    from speechlm_jax import config as configs
    from speechlm_jax.audio.wav import write_wav
    from speechlm_jax.experiment.configs import ClipsData, SpeechTokenizerExperiment
    from speechlm_jax.speech_tokenizer.encoder import EncoderConfig
    from speechlm_jax.speech_tokenizer.model import SpeechTokenizerConfig
    from speechlm_jax.speech_tokenizer.quantizer import QuantizerConfig
    from speechlm_jax.speech_tokenizer.stage import functional
    from speechlm_jax.train.checkpoint_folder import Meta
    from speechlm_jax.train.checkpoints import CheckpointWriter
    from speechlm_jax.train.loop import TrainConfig
    from speechlm_jax.train.optimizer import OptimizerConfig
    from speechlm_jax.train.state import TrainState

    rng = np.random.default_rng(0)
    for i in range(CLIPS):
        samples = rng.integers(8_000, 48_000)
        write_wav(top / f"clips/{i}.flac", rng.normal(0, 0.1, samples).astype(np.float32))
    (top / "clips/7.flac").write_bytes(b"no audio")
    encoder = EncoderConfig(layers=1, embed=16, heads=2, mlp=32, latent_dim=8, rope_theta=1e4)
    model = SpeechTokenizerConfig(
        8, encoder, QuantizerConfig(32, 8), post_vq_layers=1, decoder_layers=1
    )
    train = TrainConfig(total_steps=1, optimizer=OptimizerConfig(peak=1e-3, warmup_steps=0))
    clips = ClipsData("features", "text.model")
    plain = configs.to_json(SpeechTokenizerExperiment(clips, model, train))
    params, variables = jax.jit(functional(model).init)(jax.random.key(0))
    writer = CheckpointWriter(top / "run")
    meta = Meta("stage", 1, 1, {}, plain, configs.fingerprint(plain), {})
    writer.save(TrainState(np.int32(1), params, variables, {}), meta)
    writer.close()


def run_part(work: Path, part: int, parts: int) -> None:
    """Makes one part."""
    from speechlm_jax.verbs import encoding
    from speechlm_jax.verbs.tokenize import TokenizeConfig, tokenize

    encoding.SHARD_ROWS = SHARD_ROWS
    inputs = work.parent
    config = TokenizeConfig(part=part, parts=parts)
    tokenize([inputs / "clips"], run=inputs / "run", out=work, config=config)


def start(work: Path, part: int, parts: int) -> "subprocess.Popen[bytes]":
    """Starts a process that makes one part."""
    command = [sys.executable, __file__, "--work", str(work), "--part", str(part), str(parts)]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(work.parent / "cache"),
             "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # fmt: skip
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu", **cache}
    return subprocess.Popen(command, env={**os.environ, **quiet}, stderr=subprocess.DEVNULL)


def kill(top: Path, kills: int, moments: random.Random) -> dict[str, object]:
    """Kills one of the parts again and again; returns what came of it."""
    make_inputs(top)
    if start(top / "whole", 1, 1).wait():
        raise RuntimeError("the undisturbed run failed")
    out, killed, inside, rounds, same = top / "out", 0, 0, 0, True
    while killed < kills:
        running = {part: start(out, part, PARTS) for part in range(1, PARTS + 1)}
        while killed < kills and any(p.poll() is None for p in running.values()):
            part = moments.randint(1, PARTS)
            died, was_inside = kill_one(running[part], out, part, moments, inside=killed % 3 == 0)
            killed, inside = killed + died, inside + was_inside
            if died:
                running[part] = start(out, part, PARTS)
        for part, process in running.items():
            if process.wait():
                raise RuntimeError(f"part {part} failed with {process.returncode}")
        rounds, same = rounds + 1, same and files(out) == files(top / "whole")
        out = top / f"out{rounds}"
    return {"kills": killed, "inside_a_write": inside, "rounds": rounds, "same_bytes": same}


def kill_one(
    process: "subprocess.Popen[bytes]",
    out: Path,
    part: int,
    moments: random.Random,
    *,
    inside: bool,
) -> tuple[bool, bool]:
    """Kills a process after one more shard; returns whether, and whether inside a write."""
    folder = out / f".shards/{part:05d}-of-{PARTS:05d}"
    before = len(list(folder.glob("*.json")))
    while process.poll() is None and len(list(folder.glob("*.json"))) <= before:
        time.sleep(0.002)
    if inside:
        while process.poll() is None and not writing(folder):
            time.sleep(0.0002)
    else:
        time.sleep(moments.uniform(0, 0.1))
    process.kill()
    return process.wait() < 0, writing(folder)


def writing(folder: Path) -> bool:
    """Returns whether a file has a temporary name."""
    try:
        return any(name.endswith(".tmp") for name in os.listdir(folder))
    except FileNotFoundError:
        return False


def files(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of each file."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


if __name__ == "__main__":
    sys.exit(main())
