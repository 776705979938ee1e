"""Recordings -> a codes folder, as one job that any number of processes share."""

import dataclasses
import hashlib
import heapq
import itertools
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.audio.recordings import BAD, CLIPS
from speechlm_jax.bundle.models import Bundle
from speechlm_jax.bundle.open import open_bundle
from speechlm_jax.codes import CODES, KIND, CodesIdentity
from speechlm_jax.data.parquet import ParquetRows
from speechlm_jax.errors import UserError
from speechlm_jax.folder_lock import FolderLock
from speechlm_jax.jobs.ahead import ReadAhead
from speechlm_jax.jobs.commit import SHARDS, Shard, ShardFolder, clear
from speechlm_jax.jobs.shards import resume, total
from speechlm_jax.speech_tokenizer.windows import WindowConfig, Windows
from speechlm_jax.verbs.encoding import Encoder, Numbered, Reader
from speechlm_jax.verbs.paths import check_out_folder, check_places
from speechlm_jax.verbs.recordings import find_recordings

JOB, DONE = "job.json", "done.json"
PARQUET = "codes.parquet"
JOIN_TRIES, JOIN_WAIT_SECONDS = 5, 1.0
AHEAD = 64  # recordings that are read or wait
FEW_ROWS = 1_000  # before which a job goes on, however many rows are set aside
TOLD_REASONS = 1_000  # that the summary holds; bad.jsonl has them all
Format = Literal["jsonl", "parquet"]
_log = logging.getLogger("speechlm.tokenize")


@dataclasses.dataclass(frozen=True)
class TokenizeConfig:
    """Settings of a job.

    Attributes:
      window: how recordings are cut.
      part, parts: which of how many parts of the rows this process takes, from 1 on.
      max_bad: share of the rows that may be set aside.
      format: format of the rows with codes.
      raw_rate: sample rate of standard input that holds 16-bit samples without a header.
      audio_anywhere: true to allow recordings outside of their folder.
    """

    window: WindowConfig = WindowConfig()
    part: int = 1
    parts: int = 1
    max_bad: float = 1.0
    format: Format = "jsonl"
    raw_rate: int | None = None
    audio_anywhere: bool = False

    def __post_init__(self) -> None:
        configs.at_least(self, 1, "part", "parts")
        configs.at_least(self, 0, "max_bad", most=1)
        if self.part > self.parts:
            raise UserError(
                f"--part {self.part}/{self.parts}: there is no such part; give 1/{self.parts} to "
                f"{self.parts}/{self.parts}"
            )


def tokenize(
    audio: Sequence[str | Path],
    *,
    run: str | Path,
    out: str | Path,
    config: TokenizeConfig | None = None,
) -> dict[str, Any]:
    """Turns recordings into codes with a run's speech tokenizer (paper section 2.1).

    Writes `codes.jsonl` (or `codes.parquet`), `bad.jsonl` (rows set aside, with reasons) and
    `stage.json`. After an interruption, the same command continues. Of several parts, the last one
    to end joins them; the result is the same as without parts.

    Args:
      audio: places of recordings (see `verbs.recordings.find_recordings`).
      run: a bundle (see `bundle.open.open_bundle`).
      out: the codes folder.

    Raises:
      UserError: none of the recordings can be used, or too few of them; the run has no speech
        tokenizer; the folder holds codes of another tokenizer, window or mel.
    """
    config = config or TokenizeConfig()
    models, out = open_bundle(run), Path(out)
    models.part("tokenizer")
    check_places(audio)
    check_out_folder(out)
    job = _Job(out, config, models, audio)
    job.check()
    if config.parts == 1:
        with FolderLock(out):
            job.run()
            job.join()
            clear(out)
        return job.summary()
    if job.is_finished():
        _log.warning("%s: is finished; remove it to make it anew", out)
        clear(out)
        return job.summary()
    with FolderLock(job.part_folder(config.part)):
        shards = job.run()
    return job.summary() if _join_parts(job) else job.part_summary(shards)


def _join_parts(job: "_Job") -> bool:
    """Joins all parts once they are there; returns whether they are joined, here or elsewhere."""
    numbers = range(1, job.config.parts + 1)
    folders = [job.part_folder(part) for part in numbers]
    for _ in range(JOIN_TRIES):
        if job.is_finished() or not all((folder / DONE).is_file() for folder in folders):
            break
        job.require_clips([shard for part in numbers for shard in job.shards(part)])
        try:
            with FolderLock(job.out):
                with ExitStack() as held:
                    for folder in folders:
                        held.enter_context(FolderLock(folder))
                    job.join()
                clear(job.out)
        except UserError as error:  # another part joins, or is about to end
            _log.debug("%s", error)
            time.sleep(JOIN_WAIT_SECONDS)
    return job.is_finished()


class _Job:
    """A job's folder, and the steps from recordings to finished codes."""

    def __init__(
        self, out: Path, config: TokenizeConfig, models: Bundle, audio: Sequence[str | Path]
    ):
        self.out, self.config, self.models, self.audio = out, config, models, audio
        self.places = configs.fingerprint([str(place) for place in audio])
        self.identity: CodesIdentity = models.codes
        self.made_with = configs.to_json({"mel": models.mel, "window": config.window})

    def part_folder(self, part: int) -> Path:
        """Returns the folder of a part's shards."""
        return self.out / SHARDS / f"{part:05d}-of-{self.config.parts:05d}"

    def check(self) -> None:
        """Raises UserError if the folder holds other codes, finished or not."""
        if (self.out / artifacts.MANIFEST).is_file():
            found = artifacts.read_manifest(self.out)
            if found.kind != KIND:
                raise UserError(f"{self.out}: holds {found.kind}; give another --out")
            self._require(found.extra | found.config, "", "another --out, or remove it")
        if (self.out / SHARDS / JOB).is_file():
            self._require(
                artifacts.read_json(self.out / SHARDS / JOB), "an unfinished job of ",
                f"another --out, or remove {self.out / SHARDS}",
            )  # fmt: skip

    def _require(self, theirs: dict[str, Any], what: str, hint: str) -> None:
        """Raises UserError if codes were made otherwise, as far as is known of them."""
        mine = self._described()
        theirs = {name: theirs[name] for name in mine if name in theirs}
        theirs = configs.upgraded(theirs, {"mel": self.models.mel, "window": self.config.window})
        mine = {name: mine[name] for name in theirs}
        if theirs != mine:
            told = configs.listed(configs.differences(theirs, mine))
            raise UserError(f"{self.out}: holds {what}codes of {told}; give {hint}")

    def _described(self) -> dict[str, Any]:
        """Returns what all parts must agree on."""
        parts = {"parts": self.config.parts, "format": self.config.format}
        return {**self.identity.to_json(), **self.made_with, **parts}

    def is_finished(self) -> bool:
        """Returns whether the codes of these places are there."""
        if not (self.out / artifacts.MANIFEST).is_file():
            return False
        return artifacts.read_manifest(self.out).inputs.get("places") == self.places

    def run(self) -> list[Shard]:
        """Makes the shards of this part that are not made yet; returns all."""
        config, place = self.config, self.part_folder(self.config.part)
        artifacts.write_json(self.out / SHARDS / JOB, self._described())
        (place / DONE).unlink(missing_ok=True)
        folder = ShardFolder(place, configs.fingerprint(self._described()))
        folder.open()
        with tempfile.TemporaryDirectory() as spool:
            found = find_recordings(
                self.audio, audio_anywhere=config.audio_anywhere, spool=Path(spool)
            )
            rows = map(Numbered, itertools.count(), found)
            mine = itertools.islice(rows, config.part - 1, None, config.parts)
            shards, left = resume(folder, mine, lambda one: f"{one.number} {one.found.stamp}")
            self._make(shards, left, folder)
        folder.close(len(shards), None)
        if config.parts == 1:
            self.require_clips(shards)
        self._check_bad(shards, least=1)
        artifacts.write_json(place / DONE, {"shards": len(shards)})
        return shards

    def _make(self, shards: list[Shard], left: Iterator[Numbered], folder: ShardFolder) -> None:
        """Makes the shards of the rows that are left, and adds them to `shards`."""
        first = next(left, None)
        if first is None:
            return
        model = self.models.reader
        windows = Windows.of(self.config.window, model.config)
        reader = Reader(windows, self.config.raw_rate)
        began, before = time.monotonic(), total(shards, "seconds")
        rows = itertools.chain([first], left)
        with (
            tqdm(desc="tokenize", unit="clip", disable=None) as bar,
            ReadAhead(reader, rows, workers=_workers(), ahead=AHEAD) as clips,
        ):
            task = Encoder(model, windows, partial(bar.update, 1))
            while clips.has_more:
                shards.append(folder.make(len(shards), partial(task, clips)))
                self._check_bad(shards, least=FEW_ROWS)
        seconds, wall = total(shards, "seconds") - before, time.monotonic() - began
        _log.info(
            "%.2f hours of audio in %.2f hours: %.0f hours an hour; the model was busy %.0f%% of "
            "it", seconds / 3600, wall / 3600, seconds / wall, 100 * model.busy_seconds / wall,
        )  # fmt: skip

    def _check_bad(self, shards: Sequence[Shard], *, least: int) -> None:
        """Raises UserError if too large a share of at least so many rows is set aside."""
        bad, rows = total(shards, "bad"), total(shards, "inputs")
        if rows >= least and bad > self.config.max_bad * rows:
            raise UserError(
                f"{bad} of {rows} recordings are set aside, more than --max-bad "
                f"{self.config.max_bad:g}; the first: {_first_reason(shards)}"
            )

    def require_clips(self, shards: Sequence[Shard]) -> None:
        """Raises UserError, and removes the shards, if none of the recordings can be used."""
        if not total(shards, "clips"):
            reason = _none_left(shards)
            clear(self.out)
            raise UserError(reason)

    def join(self) -> None:
        """Writes the finished folder from the shards of all parts."""
        tally = _Tally()
        lines = heapq.merge(
            *(_lines(self.shards(part)) for part in range(1, self.config.parts + 1)),
            key=lambda line: line["number"],
        )
        (self.out / artifacts.MANIFEST).unlink(missing_ok=True)  # of earlier codes
        with artifacts.atomic_file(self.out / BAD) as bad:
            rows = tally.good_rows(lines, bad)
            if self.config.format == "jsonl":
                artifacts.write_jsonl(self.out / CODES, rows)
            else:
                with artifacts.atomic_file(self.out / PARQUET) as file, ParquetRows(file) as table:
                    for row in rows:
                        table.write(row)
        made, other = (CODES, PARQUET) if self.config.format == "jsonl" else (PARQUET, CODES)
        (self.out / other).unlink(missing_ok=True)
        artifacts.write_manifest(
            self.out, KIND, config=self.made_with, counts=tally.counts, files=[made, BAD],
            inputs={
                "audio": tally.fingerprint,
                "places": self.places,
                "tokenizer": self.identity.tokenizer,
            },
            extra=self.identity.to_json(),
        )  # fmt: skip

    def shards(self, part: int) -> list[Shard]:
        """Returns the shards of a part that is done."""
        place = self.part_folder(part)
        folder = ShardFolder(place, configs.fingerprint(self._described()))
        return [folder.recorded(n) for n in range(artifacts.read_json(place / DONE)["shards"])]

    def summary(self) -> dict[str, Any]:
        """Returns what the command prints once the codes are there."""
        counts = artifacts.read_manifest(self.out).counts
        reasons = (row["reason"] for row in artifacts.read_jsonl(self.out / BAD))
        name = CODES if self.config.format == "jsonl" else PARQUET
        mute, clips = counts["without_text"], counts["clips"]
        if mute:
            _log.warning(
                "%d of %d recordings have no text: speech alone, for tasks.speech; for tasks.asr "
                "and tasks.tts write it to %s beside them (audio, text, speaker) or to clip.txt "
                "for clip.flac, then tokenize again", mute, clips, CLIPS,
            )  # fmt: skip
        return {
            "codes": str(self.out / name),
            "clips": counts["clips"],
            "without_text": counts["without_text"],
            "num_codes": counts["codes"],
            "seconds": counts["seconds"],
            "tokenizer": self.identity.tokenizer,
            "set_aside": list(itertools.islice(reasons, TOLD_REASONS)),
        }

    def part_summary(self, shards: Sequence[Shard]) -> dict[str, Any]:
        """Returns what the command prints once a part is there, and others are not."""
        return {
            "part": f"{self.config.part}/{self.config.parts}",
            "clips": total(shards, "clips"),
            "bad": total(shards, "bad"),
            "seconds": round(total(shards, "seconds"), 4),
            "tokenizer": self.identity.tokenizer,
        }


class _Tally:
    """Counts of the rows that pass by."""

    def __init__(self) -> None:
        self.counts = {"clips": 0, "bad": 0, "without_text": 0, "codes": 0, "seconds": 0.0}
        self._digest = hashlib.sha256()

    def good_rows(self, lines: Iterator[dict[str, Any]], bad: Any) -> Iterator[dict[str, Any]]:
        """Yields the rows with codes; writes those set aside to the file `bad`."""
        for line in lines:
            if "bad" in line:
                self.counts["bad"] += 1
                bad.write((json.dumps(line["bad"], ensure_ascii=False) + "\n").encode())
                continue
            row = line["row"]
            self.counts["clips"] += 1
            self.counts["without_text"] += "text" not in row
            self.counts["codes"] += len(row["codes"])
            self.counts["seconds"] = round(self.counts["seconds"] + row["seconds"], 4)
            self._digest.update(row["sha256"].encode())
            yield row

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the recordings that have codes."""
        return self._digest.hexdigest()[:16]


def _workers() -> int:
    """Returns the threads that read: the model has a core of its own."""
    return max(1, min(8, (os.cpu_count() or 2) - 1))


def _lines(shards: Sequence[Shard]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        yield from artifacts.read_jsonl(shard.path)


def _first_reason(shards: Sequence[Shard]) -> str:
    return next(line["bad"]["reason"] for line in _lines(shards) if "bad" in line)


def _none_left(shards: Sequence[Shard]) -> str:
    rows = total(shards, "inputs")
    if not rows:
        return "there is no recording; give one"
    reason = _first_reason(shards)
    return reason if rows == 1 else f"none of {rows} recordings can be used; the first: {reason}"
