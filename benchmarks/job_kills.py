"""kill -9 of corpus jobs at random moments: the output must equal that of an undisturbed run.

    python benchmarks/job_kills.py                # 10 kills of each job
    python benchmarks/job_kills.py --kills 3 --job prepare

The jobs are codes of a corpus (an untrained speech tokenizer on noise), interleave (with a stand-in
for speech) and prepare (one text task, two splits). Each runs in a process of its own, which is
killed at a random moment or (every third time) as soon as a file is half written. The same call
then continues. A run that ends before its moment is compared but is no kill, and the next one
starts without files. Prints one JSON object for each job: its kills, those that left a half-written
file, the runs that ended, and whether all files of these runs equal those of an undisturbed run.
Exit code 1 unless they do.

Half-written files directly in the folder of `prepare`, which several mixtures share, are not
compared: they are never read.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechlm_jax import artifacts

CLIPS, CLIPS_A_CALL, MELS = 240, 4, 8
DOCUMENTS, DOCUMENTS_A_BATCH = 6_000, 50
TEXTS, ROW_SHARDS = 20_000, 8
WORDS = "anna lives in the city of paris and bob has a red cat".split()


def codes(inputs: Path, out: Path) -> None:
    """Writes codes of clips of noise by an untrained tokenizer, compiled before the job begins."""
    import jax

    from speechlm_jax.audio.mel_config import MelConfig
    from speechlm_jax.audio.recordings import FEATURES_KIND, ROWS, Features
    from speechlm_jax.audio.recordings import MELS as FRAMES
    from speechlm_jax.codes import CodesIdentity
    from speechlm_jax.speech_tokenizer import encode_corpus
    from speechlm_jax.speech_tokenizer.encoder import EncoderConfig
    from speechlm_jax.speech_tokenizer.model import SpeechTokenizerConfig
    from speechlm_jax.speech_tokenizer.quantizer import QuantizerConfig
    from speechlm_jax.speech_tokenizer.reading import Transcriber
    from speechlm_jax.speech_tokenizer.stage import functional

    if not (inputs / artifacts.MANIFEST).is_file():
        frames = np.random.default_rng(0).normal(size=(CLIPS * 100, MELS)).astype(np.float16)
        inputs.mkdir()
        np.save(inputs / FRAMES, frames, allow_pickle=False)
        rows = [{"id": f"c{i}", "start": 100 * i, "stop": 100 * i + 100} for i in range(CLIPS)]
        artifacts.write_jsonl(inputs / ROWS, rows)
        config = {"mel": MelConfig(num_mels=MELS)}
        artifacts.write_manifest(inputs, FEATURES_KIND, inputs={}, config=config, files=[FRAMES])
    features = Features(inputs)
    encoder = EncoderConfig(num_mels=MELS, layers=1, embed=16, heads=2, mlp=32, latent_dim=8)
    quantizer = QuantizerConfig(codebook_size=32, codebook_dim=8)
    model = SpeechTokenizerConfig(8, encoder, quantizer, post_vq_layers=1, decoder_layers=1)
    params, variables = jax.jit(functional(model).init)(jax.random.key(0))
    reader = Transcriber(model, params, variables, batch_size=CLIPS_A_CALL)
    reader.mels_to_codes([features.mel(0)])
    encode_corpus.CLIPS_PER_CALL = CLIPS_A_CALL
    encode_corpus.features_to_codes(
        features, reader, out, identity=CodesIdentity("untrained", 12.5, 32)
    )


def interleave(inputs: Path, out: Path) -> None:
    """Writes interleaved documents; the codes of a span are the lengths of its words."""
    from speechlm_jax.codes import CodesIdentity
    from speechlm_jax.interleave.build import InterleaveConfig, document_to_interleaved

    del inputs  # this job draws its own
    rng = np.random.default_rng(0)
    documents = ({"id": f"d{i}", "text": _text(rng, 100)} for i in range(DOCUMENTS))
    document_to_interleaved(
        documents,
        lambda requests: [[len(word) for word in request.text.split()] for request in requests],
        say=lambda word: word,
        out=out,
        config=InterleaveConfig(batch_documents=DOCUMENTS_A_BATCH),
        inputs={"documents": "drawn"},
        codes=CodesIdentity("lengths", 12.5, 32),
    )


def prepare(inputs: Path, out: Path) -> None:
    """Writes the rows of a text task."""
    from speechlm_jax.data import tasks
    from speechlm_jax.data.prepare import PrepareConfig
    from speechlm_jax.data.prepare import prepare as prepare_mixture
    from speechlm_jax.text import TextTokenizer
    from speechlm_jax.vocab import Vocab

    if not inputs.is_file():
        rng = np.random.default_rng(0)
        rows = [{"id": f"t{i}", "text": _text(rng, 20)} for i in range(TEXTS)]
        artifacts.write_jsonl(inputs, rows)
    text = TextTokenizer.train([" ".join(WORDS)], kind="word")
    vocab = Vocab(text.size, 16, 12.5, text.fingerprint, "none")
    tasks.text("killed", str(inputs), validation_ratio=0.3)
    config = PrepareConfig(length=128, num_shards=ROW_SHARDS)
    prepare_mixture("killed", vocab=vocab, tokenizer=text, out=out, config=config, quiet=True)


def _text(rng: np.random.Generator, words: int) -> str:
    return " ".join(rng.choice(WORDS, words))


JOBS: dict[str, Callable[[Path, Path], None]] = {
    "codes": codes,
    "interleave": interleave,
    "prepare": prepare,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs and kills each job; returns exit code 1 if any output differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10, help="of each job (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--job", choices=JOBS, action="append", help="this one alone")
    for name in ("--inputs", "--out"):
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.out:
        JOBS[args.job[0]](args.inputs, args.out)
        return 0
    same = True
    for job in args.job or JOBS:
        with tempfile.TemporaryDirectory() as top:
            result = _kill_job(job, Path(top), args.kills, random.Random(args.seed))
        print(json.dumps(result), flush=True)
        same = same and bool(result["same_bytes"])
    return int(not same)


def _kill_job(job: str, top: Path, kills: int, moments: random.Random) -> dict[str, Any]:
    """Kills a job `kills` times and lets it end; compares the output of each run that ended."""
    whole, out = top / "whole", top / "killed"
    seconds = _finish(job, whole)
    wanted, ended, same = _hashes(whole), 0, True
    killed = inside = 0
    while killed < kills:
        if _kill(job, out, None if killed % 3 == 0 else moments.uniform(0.0, seconds / 2)):
            killed += 1
            inside += _is_writing(out)
            continue
        ended, same = ended + 1, same and _hashes(out) == wanted
        shutil.rmtree(out)
    _finish(job, out)
    same = same and _hashes(out) == wanted
    return {"job": job, "kills": killed, "inside_a_write": inside, "runs_that_ended": ended + 1,
            "same_bytes": same}  # fmt: skip


def _kill(job: str, out: Path, seconds: float | None) -> bool:
    """Kills a run `seconds` after its first file (None: inside a write).

    Returns false if the run ended before.
    """
    process, before = _start(job, out), _names(out)
    while process.poll() is None and _names(out) == before:
        time.sleep(0.001)
    if seconds is None:
        while process.poll() is None and not _is_writing(out):
            time.sleep(0.0005)
    else:
        time.sleep(seconds)
    process.kill()
    if process.wait() > 0:
        raise RuntimeError(f"{job} failed with {process.returncode}")
    return process.returncode != 0


def _finish(job: str, out: Path) -> float:
    """Runs a job to its end; returns the seconds from its first file to the end."""
    process, before = _start(job, out), _names(out)
    while process.poll() is None and _names(out) == before:
        time.sleep(0.001)
    began = time.monotonic()
    if process.wait():
        raise RuntimeError(f"{job} failed with {process.returncode}")
    return time.monotonic() - began


def _start(job: str, out: Path) -> "subprocess.Popen[bytes]":
    inputs = out.parent / "inputs"
    command = [sys.executable, __file__, "--job", job, "--inputs", inputs, "--out", out]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(list(map(str, command)), env=environment)


def _names(out: Path) -> set[str]:
    return {os.path.join(place, name) for place, _, names in os.walk(out) for name in names}


def _is_writing(out: Path) -> bool:
    """Returns whether a file or folder has a temporary name."""
    return any(name.endswith(".tmp") for _, folders, files in os.walk(out)
               for name in [*folders, *files])  # fmt: skip


def _hashes(out: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file."""
    return {
        name.removeprefix(str(out)): hashlib.sha256(Path(name).read_bytes()).hexdigest()
        for name in _names(out)
        if not (Path(name).parent == out and ".mixture.json." in name)
    }


if __name__ == "__main__":
    sys.exit(main())
