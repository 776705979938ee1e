"""Turns text into samples with a time for every word, by eSpeak NG (`espeak` extra; GPL-3).

A clip is a function of its text and voice alone: `espeak_worker` forks for every clip.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import soxr
from jaxtyping import Float
from numpy import ndarray

from speechlm_jax.errors import UserError

ACCENTS = ("en", "en-US", "en-GB-scotland", "en-GB-x-rp")
VARIANTS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5", "Andy")
# Whole variants, one of each kind, so that training hears nothing of these voices.
HELD_OUT_VARIANTS = ("m3", "f2")
VOLUME = 50  # of 100: any louder, and the variant Andy exceeds the largest 16-bit sample
PITCHES, RATES = (30, 70), (120, 175)


@dataclasses.dataclass(frozen=True)
class Voice:
    """A speaker.

    Attributes:
      accent: an English voice of eSpeak NG, e.g. "en-US".
      variant: one of its voice variants, e.g. "f2".
      pitch: 0 to 99; 50 is the variant's own.
      rate: words per minute.
    """

    accent: str = "en-US"
    variant: str = "m1"
    pitch: int = 50
    rate: int = 150

    @property
    def name(self) -> str:
        """Name of the speaker in manifests, e.g. "en-US+f2"."""
        return f"{self.accent}+{self.variant}"


@dataclasses.dataclass(frozen=True)
class Voices:
    """Training voices and held-out voices, which share no variant."""

    train: tuple[Voice, ...]
    held_out: tuple[Voice, ...]


@dataclasses.dataclass(frozen=True)
class Request:
    """A text to say, and the voice that says it."""

    text: str
    voice: Voice


@dataclasses.dataclass(frozen=True)
class Word:
    """A word of the request's text, and its start and end in the clip, in seconds."""

    text: str
    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class Clip:
    """Speech: float32 samples in [-1, 1], and the words in them."""

    wav: Float[ndarray, " samples"]
    sample_rate: int
    words: tuple[Word, ...]


def make_voices(seed: int, *, held_out: Sequence[str] = HELD_OUT_VARIANTS) -> Voices:
    """Returns 4 accents x 13 variants = 52 voices; draws their pitches and rates from `seed`."""
    rng = np.random.default_rng((seed, 0x701CE5))
    train, kept = [], []
    for accent in ACCENTS:
        for variant in VARIANTS:
            pitch = int(rng.integers(PITCHES[0], PITCHES[1] + 1))
            rate = int(rng.integers(RATES[0], RATES[1] + 1))
            (kept if variant in held_out else train).append(Voice(accent, variant, pitch, rate))
    return Voices(tuple(train), tuple(kept))


def engine() -> str:
    """Names what a clip depends on besides its request; UserError without eSpeak NG."""
    try:
        version = importlib.metadata.version("espeakng-loader")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "espeakng-loader is not installed: `pip install -e '.[espeak]'` (it is GPL-3)"
        ) from None
    return f"espeakng-loader {version}, volume {VOLUME}"


def synthesize(
    requests: Iterable[Request], *, workers: int = 2, sample_rate: int = 16_000
) -> Iterator[Clip]:
    """Says every request, in order; about 300 times real time per worker.

    The samples of a clip depend on its request alone, not on the others, their order or `workers`.

    Raises:
      UserError: eSpeak NG is not installed, or it cannot say a request.
    """
    requests = list(requests)
    workers = max(1, min(workers, len(requests)))
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_worker(requests[i::workers])) for i in range(workers)]
        for number, request in enumerate(requests):
            yield _read_clip(processes[number % workers], request, sample_rate)


@contextlib.contextmanager
def _worker(requests: Sequence[Request]) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a worker process, in a context, and a thread that feeds it these requests."""
    engine()  # reports a missing engine here, not in the worker's traceback
    process = subprocess.Popen(
        [sys.executable, "-m", "speechlm_jax.audio.espeak_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # The library may have been found through a path that a new process does not have.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    feeder = threading.Thread(target=_feed, args=(process, requests), daemon=True)
    feeder.start()
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        feeder.join()
        if process.stdout is not None:
            process.stdout.close()


def _feed(process: subprocess.Popen[bytes], requests: Sequence[Request]) -> None:
    assert process.stdin is not None
    # The worker was stopped, by the caller or by a fault that the reader reports.
    with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
        for request in requests:
            voice = request.voice
            line = {
                "text": request.text,
                "voice": f"gmw/{voice.name}",
                "pitch": voice.pitch,
                "rate": voice.rate,
                "volume": VOLUME,
            }
            stdin.write(json.dumps(line).encode() + b"\n")


def _read_clip(process: subprocess.Popen[bytes], request: Request, sample_rate: int) -> Clip:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise UserError(
            f"eSpeak NG's process ended before it said {request.text!r}; see its message above"
        )
    head = json.loads(line)
    if "error" in head:
        raise UserError(f"voice {request.voice.name}: {head['error']}")
    data = process.stdout.read(head["bytes"])
    if len(data) < head["bytes"] or not data:
        raise UserError(f"voice {request.voice.name}: eSpeak NG gave no sound for {request.text!r}")
    source_rate = head["sample_rate"]
    wav = np.frombuffer(data, "<i2").astype(np.float32) / 32_768
    words = _words(head["events"], request.text, len(wav), source_rate)
    if source_rate != sample_rate:
        wav = np.clip(soxr.resample(wav, source_rate, sample_rate), -1.0, 1.0)
    return Clip(wav, sample_rate, words)


def _words(
    events: Sequence[Sequence[Any]], text: str, num_samples: int, source_rate: int
) -> tuple[Word, ...]:
    """Returns word times; a word ends at the first pause after it, or as the next one starts."""
    words = []
    for number, (kind, start, position, length) in enumerate(events):
        if kind != "word":
            continue
        end = events[number + 1][1] if number + 1 < len(events) else num_samples
        spoken = text[position - 1 : position - 1 + length]
        words.append(Word(spoken, start / source_rate, min(end, num_samples) / source_rate))
    return tuple(words)
