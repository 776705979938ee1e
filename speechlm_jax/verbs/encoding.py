"""Recordings -> shards of rows with codes: threads read ahead of one warm model.

A shard holds whole recordings, `SHARD_SECONDS` of them or `SHARD_ROWS` rows. Where it ends depends
on the recordings alone, so that a job that was killed goes on at the same place.
"""

import dataclasses
import json
import logging
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from speechlm_jax import artifacts, bucket
from speechlm_jax.audio.wav import BadAudio, read_blocks
from speechlm_jax.jobs.ahead import ReadAhead
from speechlm_jax.jobs.shards import Taken
from speechlm_jax.speech_tokenizer.reading import Transcriber
from speechlm_jax.speech_tokenizer.windows import WindowMel, Windows
from speechlm_jax.verbs.recordings import Found

SHARD_SECONDS = 1_200.0  # of audio: what a kill loses at most, but for longer recordings
SHARD_ROWS = 4_096
_log = logging.getLogger("speechlm.tokenize")


class Numbered(NamedTuple):
    """A recording and its number among all rows of the job."""

    number: int
    found: Found


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What reading a recording to its end told: its length and hash, or why it is set aside."""

    seconds: float = 0.0
    sha256: str = ""
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Reader:
    """What threads do: a recording -> the mel frames of each of its windows, then its outcome.

    Attributes:
      windows: sizes of the windows.
      raw_rate: sample rate of standard input that has no header.
    """

    windows: Windows
    raw_rate: int | None = None

    def __call__(self, one: Numbered) -> Iterator[WindowMel | Outcome]:
        """Yields mel frames, and the outcome at the end."""
        found, mel = one.found, self.windows.mel
        if found.reason:
            yield Outcome(reason=found.reason)
            return
        try:
            source = _fetched(found)
            rate = self.raw_rate if found.row["audio"] == "-" else None
            heard = [0]
            blocks = read_blocks(
                source, name=found.name, sample_rate=mel.sample_rate, raw_rate=rate
            )
            yield from self.windows.mels(_counted(blocks, heard))
            yield Outcome(heard[0] / mel.sample_rate, artifacts.sha256(source))
        except (BadAudio, bucket.NoSuchObject) as error:
            yield Outcome(reason=str(error))


def _fetched(found: Found) -> Path | bytes:
    if isinstance(found.source, str):
        return bucket.read_bytes(found.source)
    assert found.source is not None
    return found.source


def _counted(blocks: Iterator[np.ndarray], heard: list[int]) -> Iterator[np.ndarray]:
    for block in blocks:
        heard[0] += len(block)
        yield block


@dataclasses.dataclass
class _Clip:
    """A recording under way: the codes of its windows so far, and what is known at its end."""

    one: Numbered
    windows: int = 0
    codes: list[np.ndarray] = dataclasses.field(default_factory=list)
    outcome: Outcome | None = None

    @property
    def is_done(self) -> bool:
        return self.outcome is not None and len(self.codes) == self.windows


class Encoder:
    """The shard task."""

    def __init__(self, model: Transcriber, windows: Windows, done: Callable[[], object]):
        """Takes the model; `done` is called after each recording."""
        self._model, self._windows, self._done = model, windows, done

    def __call__(self, clips: ReadAhead[Numbered, Any], path: Path) -> dict[str, Any]:
        """Writes the rows of a shard; returns what it took and counted."""
        taken, counts = Taken(), {"clips": 0, "bad": 0, "seconds": 0.0}
        waiting: deque[_Clip] = deque()  # in order; the first ones are done first
        owners: deque[_Clip] = deque()  # of windows whose codes are not there yet
        made = self._model.iter_codes(
            self._feed(clips, waiting, owners, taken), most=self._windows.mel_frames
        )
        with open(path, "wb") as file:
            for codes in made:
                owners.popleft().codes.append(codes)
                self._write(file, waiting, counts)
            self._write(file, waiting, counts)
        return {**taken.record, **counts}

    def _feed(
        self,
        clips: ReadAhead[Numbered, Any],
        waiting: deque[_Clip],
        owners: deque[_Clip],
        taken: Taken,
    ) -> Iterator[WindowMel]:
        """Yields the mel frames of all windows of a shard."""
        seconds = 0.0
        while clips.has_more and seconds < SHARD_SECONDS and taken.inputs < SHARD_ROWS:
            one, parts = clips.take()
            clip = _Clip(one)
            taken.add(f"{one.number} {one.found.stamp}")
            waiting.append(clip)
            for part in parts:
                if isinstance(part, Outcome):
                    clip.outcome = part
                    seconds += part.seconds
                else:
                    clip.windows += 1
                    owners.append(clip)
                    yield part

    def _write(self, file: Any, waiting: deque[_Clip], counts: dict[str, Any]) -> None:
        """Writes the rows that are done, in order."""
        while waiting and waiting[0].is_done:
            clip = waiting.popleft()
            row, reason = self._row(clip)
            if reason:
                _log.warning("set aside: %s", reason)
            counts["bad" if reason else "clips"] += 1
            counts["seconds"] += 0.0 if reason else row["seconds"]
            line = {"number": clip.one.number, "bad" if reason else "row": row}
            file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
            self._done()

    def _row(self, clip: _Clip) -> tuple[dict[str, Any], str]:
        """Returns the row of a recording that was read, and why it is set aside, or ""."""
        found, outcome = clip.one.found, clip.outcome
        assert outcome is not None
        codes = np.concatenate([np.zeros(0, np.int32), *self._windows.join(clip.codes)])
        reason = outcome.reason
        if not reason and not len(codes):
            reason = f"{found.name}: is shorter than one code; drop its row"
        if reason:
            return {**found.row, "reason": reason}, reason
        told = {"start": 0.0, "seconds": round(outcome.seconds, 4), "sha256": outcome.sha256}
        return {**found.row, **told, "codes": codes.tolist()}, ""
