"""Speed of what a speech tokenizer does to audio, beside other code for the same, paired.

    python benchmarks/tokenizer_speed.py                  # log-mel frames
    python benchmarks/tokenizer_speed.py --turns 100

Prints one JSON object for each part: median and smallest seconds of each side, and the median over
turns of their ratio. The sides take turns in one process, on one thread, in an order that changes,
so that other work on the machine meets them alike. Log-mel: 30 s of noise at 16 kHz, 80 mel bins;
Whisper's feature extractor is that of `transformers` (by torch), librosa's side ends with log10.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # read when the libraries are imported

import argparse  # noqa: E402
import json  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Mapping, Sequence  # noqa: E402
from typing import Any  # noqa: E402

import librosa  # noqa: E402
import numpy as np  # noqa: E402

from speechlm_jax.audio.mel import SMALLEST_POWER, wav_to_mel  # noqa: E402
from speechlm_jax.audio.mel_config import WHISPER, MelConfig  # noqa: E402
from speechlm_jax.errors import EXIT_OK  # noqa: E402

OURS = "ours"
SECONDS = 30
Sides = Mapping[str, Callable[[], Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=40, help="of every side (default: 40)")
    args = parser.parse_args(arguments)
    print(json.dumps({"part": "log-mel", "audio_seconds": SECONDS,
                      **compare(log_mel(WHISPER), turns=args.turns)}))  # fmt: skip
    return EXIT_OK


def log_mel(config: MelConfig) -> Sides:
    """Sides that turn the same samples into log-mel frames, on one thread."""
    noise = np.random.default_rng(0).normal(size=SECONDS * config.sample_rate)
    wav = (0.1 * noise).astype(np.float32)

    def by_librosa() -> np.ndarray:
        power = librosa.feature.melspectrogram(
            y=wav, sr=config.sample_rate, n_fft=config.n_fft, hop_length=config.hop_length,
            n_mels=config.num_mels, pad_mode="reflect",
        )  # fmt: skip
        return np.log10(np.maximum(power, SMALLEST_POWER))

    sides = {OURS: lambda: wav_to_mel(wav, config), "librosa": by_librosa}
    try:
        import torch
        from transformers import WhisperFeatureExtractor
    except ImportError:  # the `oracles` extra
        return sides
    torch.set_num_threads(1)
    extractor = WhisperFeatureExtractor(feature_size=config.num_mels)
    rate = config.sample_rate
    return {**sides, "transformers": lambda: extractor(wav, sampling_rate=rate)}


def compare(sides: Sides, *, turns: int) -> dict[str, Any]:
    """Seconds of each side, and how many times as long as ours each other one takes in a turn."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for run in sides.values():  # compiles, and fills caches
        run()
    for turn in range(turns):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - start)
    mine = seconds[OURS]
    return {
        "turns": turns,
        "median_seconds": {name: statistics.median(all_) for name, all_ in seconds.items()},
        "least_seconds": {name: min(all_) for name, all_ in seconds.items()},
        "times_ours": {
            name: statistics.median(b / a for a, b in zip(mine, all_, strict=True))
            for name, all_ in seconds.items()
            if name != OURS
        },
    }


if __name__ == "__main__":
    sys.exit(main())
