"""A stream of 20 minutes: its state, cost of a block and encoded frames; and what seams cost.

    python benchmarks/stream.py                                # an untrained tokenizer
    python benchmarks/stream.py --run runs/quickstart --audio my_recordings/long.flac
    python benchmarks/stream.py --minutes 3

Prints one JSON object. `state_bytes`: smallest and largest. `block_ms`: the median of a block in
the second and in the last minute, and their ratio. `encoded`: mel frames encoded for each frame
heard, and the most that the rule allows. `same_as_file`: share of codes equal to those of the
file. `seam`: share of codes in the 2 s after each seam that equal those of one window over both
sides of it, for contexts of 0, 2, 4 and 8 s. Exit code 1 if the state or the cost grows, or too
much is encoded.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from speechlm_jax.audio.mel_config import MelConfig
from speechlm_jax.audio.wav import read_wav
from speechlm_jax.bundle.open import open_bundle
from speechlm_jax.speech_tokenizer.encoder import EncoderConfig
from speechlm_jax.speech_tokenizer.model import SpeechTokenizerConfig
from speechlm_jax.speech_tokenizer.reading import Transcriber
from speechlm_jax.speech_tokenizer.stage import functional
from speechlm_jax.speech_tokenizer.stream import Stream
from speechlm_jax.speech_tokenizer.windows import WindowConfig

CHUNK_SECONDS = 0.08
SEAM_SECONDS = 2.0
SLOWER = 1.2  # the last minute may cost as much of the second


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures a stream and its seams."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="a run with a speech tokenizer")
    parser.add_argument("--audio", type=Path, help="a recording (default: noise)")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--context-seconds", type=float, default=4.0)
    args = parser.parse_args(arguments)
    reader = open_bundle(args.run).reader if args.run else untrained()
    rate = reader.config.mel.sample_rate
    samples = int(args.minutes * 60 * rate)
    wav = np.resize(read_wav(args.audio, sample_rate=rate), samples) if args.audio else None
    wav = noise(samples) if wav is None else wav
    window = WindowConfig(context_seconds=args.context_seconds)
    told = measure(reader, wav, window)
    few = wav[: min(samples, 180 * rate)]
    told["seam"] = {f"{s:g}": seam(reader, few, s) for s in (0.0, 2.0, 4.0, 8.0)}
    print(json.dumps(told))
    low, high = told["state_bytes"]
    is_slower = told["block_ms"]["ratio"] > SLOWER
    return int(low != high or is_slower or told["encoded"]["each"] > told["encoded"]["most"])


def untrained() -> Transcriber:
    """Returns the quickstart's tokenizer before training, with the floor of streams."""
    config = SpeechTokenizerConfig(
        text_size=8, encoder=EncoderConfig(rope_theta=10_000.0), mel=MelConfig(floor="fixed")
    )
    params, variables = jax.jit(functional(config).init)(jax.random.key(0))
    return Transcriber(config, params, variables)


def noise(samples: int) -> np.ndarray:
    """Returns noise whose level changes ten times a second."""
    rng = np.random.default_rng(0)
    levels = np.repeat(10.0 ** rng.uniform(-3, -0.5, -(-samples // 1_600)), 1_600)[:samples]
    return np.clip(rng.normal(size=samples) * levels, -1, 1).astype(np.float32)


def measure(reader: Transcriber, wav: np.ndarray, window: WindowConfig) -> dict[str, Any]:
    """Streams samples in small chunks; returns figures of the stream."""
    rate = reader.config.mel.sample_rate
    Stream(reader, window).push(wav[: 10 * rate])  # compiles
    stream, size = Stream(reader, window), int(CHUNK_SECONDS * rate)
    costs: list[tuple[float, float]] = []  # second, seconds of a call of the encoder
    states, made = set(), []
    for first in range(0, len(wav), size):
        began, before = time.perf_counter(), stream.mel_frames_encoded
        made.append(stream.push(wav[first : first + size]))
        blocks = (stream.mel_frames_encoded - before) / reader.config.encoder.block_mel_frames
        if blocks:
            costs.append((first / rate, (time.perf_counter() - began) / blocks))
        states.add(stream.state_bytes)
    made.append(stream.finish())
    whole, codes = reader.wav_to_codes(wav, window), np.concatenate(made)
    seconds = len(wav) / rate
    second, last = (
        float(np.median([cost for at, cost in costs if start <= at < start + 60]))
        for start in (60, seconds - 60)
    )
    heard = len(wav) // reader.config.mel.hop_length
    context, length = window.context_seconds, window.seconds
    return {
        "seconds": seconds,
        "codes": len(codes),
        "same_as_file": float(np.mean(codes == whole)) if len(codes) == len(whole) else 0.0,
        "state_bytes": [min(states), max(states)],
        "block_ms": {"second": second * 1e3, "last": last * 1e3, "ratio": last / second},
        "encoded": {
            "each": stream.mel_frames_encoded / heard,
            "most": 1 + context / (length - context),
        },
    }


def seam(reader: Transcriber, wav: np.ndarray, context_seconds: float) -> float:
    """Returns the share of codes after seams that equal those without a seam there."""
    window = WindowConfig(context_seconds=context_seconds)
    rate, frame_rate = reader.config.mel.sample_rate, reader.config.frame_rate_hz
    few = round(SEAM_SECONDS * frame_rate)
    step = int((window.seconds - context_seconds) * rate)
    parts = reader.wav_to_codes(wav, window)
    equal = []
    for number in range(1, (len(wav) - int(window.seconds * rate)) // step + 1):
        at = number * step + int(context_seconds * rate)  # of the first sample after the seam
        start = at - int(window.seconds / 2 * rate)
        if start + window.seconds * rate > len(wav):
            break
        around = reader.wav_to_codes(wav[start : start + int(window.seconds * rate)])
        middle = round(window.seconds / 2 * frame_rate)
        here = round(at / rate * frame_rate)
        equal.append(np.mean(parts[here : here + few] == around[middle : middle + few]))
    return float(np.mean(equal)) if equal else float("nan")


if __name__ == "__main__":
    sys.exit(main())
