"""Audio files and clip folders -> rows and log-mel frames; unusable recordings are set aside."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from speechlm_jax.arrays import Float, ndarray
from speechlm_jax.audio.mel import wav_to_mel
from speechlm_jax.audio.mel_config import MelConfig
from speechlm_jax.audio.recordings import CLIPS, NO_WORDS, audio_path, read_clips
from speechlm_jax.audio.wav import BadAudio, read_wav
from speechlm_jax.data.content import has_words
from speechlm_jax.verbs.paths import RECORDINGS, find_files, require_recordings

MAX_SECONDS = 30.0  # as in Whisper; the cost of attention grows with its square


@dataclasses.dataclass(frozen=True)
class Found:
    """A recording's file and its row: `id`, `audio` (relative) and its known fields."""

    path: Path
    row: dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Recording(Found):
    """A recording and its log-mel frames."""

    mel: Float[ndarray, "mel_frames mels"]


def find_recordings(
    places: Sequence[Path], *, audio_anywhere: bool = False
) -> tuple[list[Found], list[dict[str, Any]]]:
    """Returns the recordings of files and folders, and the rows set aside, each with a `reason`.

    A recording's row has the fields of its row in `manifest.jsonl`, which is in the folder or
    beside the file. For a recording that no manifest lists, the text is that of the .txt file of
    the same name (`clip.flac`, `clip.txt`). A folder without a manifest gives all recordings in and
    below it. A row whose text has no words is set aside. Ids and `audio` are relative to the
    folder, if `places` is one folder, and otherwise to the deepest common folder.

    Raises:
      UserError: a folder has neither a manifest nor recordings, or none of its rows can be used.
    """
    finder = _Finder(_home(places), audio_anywhere)
    for place in places:
        if not place.is_dir():
            finder.add_file(place)
        elif (place / CLIPS).is_file():
            finder.add_clips(place)
        else:
            finder.add_folder(place)
    return finder.found, finder.bad


@dataclasses.dataclass
class _Finder:
    """Collector of recordings.

    Attributes:
      home: folder that ids and `audio` are relative to.
      audio_anywhere: true to allow recordings outside of their folder.
    """

    home: Path
    audio_anywhere: bool
    found: list[Found] = dataclasses.field(default_factory=list)
    bad: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    _beside: dict[Path, dict[str, tuple[dict[str, Any], str | None]]] = dataclasses.field(
        default_factory=dict
    )

    def add_clips(self, folder: Path) -> None:
        """Adds every row of a clip folder."""
        clips = read_clips(folder, audio_anywhere=self.audio_anywhere)
        for row in clips.rows:
            self._add(folder / row["audio"], self._row(folder, row))
        self.bad += [self._row(folder, row) for row in clips.bad]

    def add_folder(self, folder: Path) -> None:
        """Adds every recording in and below a folder without a manifest."""
        require_recordings(folder)
        for path in sorted(p for p in find_files(folder) if p.suffix.lower() in RECORDINGS):
            try:
                audio_path(folder, str(path.relative_to(folder)), anywhere=self.audio_anywhere)
            except BadAudio as error:
                row = self._row(path.parent, {"audio": path.name})
                self.bad.append({**row, "reason": str(error)})
            else:
                self.add_file(path)

    def add_file(self, path: Path) -> None:
        """Adds a recording with its known fields."""
        row, reason = self._known(path)
        self._add(path, self._row(path.parent, row), reason)

    def _known(self, path: Path) -> tuple[dict[str, Any], str | None]:
        """Returns a file's row, and the reason why it cannot be used, or None."""
        folder = path.parent
        if folder not in self._beside:
            self._beside[folder] = {}
            if (folder / CLIPS).is_file():
                clips = read_clips(folder, audio_anywhere=self.audio_anywhere)
                rows = [(row, row["reason"]) for row in clips.bad] + [(r, None) for r in clips.rows]
                self._beside[folder] = {
                    os.path.normpath(str(row.get("audio"))): (row, reason) for row, reason in rows
                }
        if path.name in self._beside[folder]:
            return self._beside[folder][path.name]
        text, reason = _transcript(path, anywhere=self.audio_anywhere)
        return {"audio": path.name, **({} if text is None else {"text": text})}, reason

    def _row(self, folder: Path, row: dict[str, Any]) -> dict[str, Any]:
        """Returns the row of a recording in `folder`, with `id` and `audio` relative to `home`."""
        prefix = os.path.relpath(folder, self.home)
        audio = os.path.normpath(os.path.join(prefix, str(row.get("audio", ""))))
        named = row.get("id", audio)
        if "id" in row and prefix != os.curdir:
            named = f"{prefix}/{named}"
        return {**row, "id": named, "audio": audio}

    def _add(self, path: Path, row: dict[str, Any], reason: str | None = None) -> None:
        """Adds a row to `found`, or to `bad` with a reason."""
        name = row["audio"].encode(errors="replace").decode()
        if name != row["audio"]:
            row, reason = {"id": name, "audio": name}, f"{name}: its name is not UTF-8; rename it"
        if reason is None and "text" in row and not has_words(row["text"]):
            reason = f"{path}: {NO_WORDS}"
        if reason is None:
            self.found.append(Found(path, row))
        else:
            self.bad.append({**row, "reason": reason})


def _transcript(path: Path, *, anywhere: bool) -> tuple[str | None, str | None]:
    """Returns the text of the .txt file beside a recording, and the reason why it cannot be used.

    Both are None if there is no such file.
    """
    beside = path.with_suffix(".txt")
    home = os.path.realpath(path.parent)
    if not anywhere and not Path(os.path.realpath(beside)).is_relative_to(home):
        return None, (
            f"{beside}: is a link out of its folder; copy the text there, or allow that with "
            "--audio-anywhere"
        )
    try:
        text = beside.read_text(encoding="utf-8-sig").strip() if beside.is_file() else None
        return text, None
    except UnicodeDecodeError:
        return None, f"{beside}: is not UTF-8; convert it, e.g. `iconv -t utf-8`"


def _home(places: Sequence[Path]) -> Path:
    """Returns the only place if it is a folder; otherwise the deepest folder with all places."""
    if len(places) == 1 and places[0].is_dir():
        return places[0]
    return Path(os.path.commonpath([os.path.abspath(place.parent) for place in places]))


def read_recordings(
    found: Sequence[Found], bad: list[dict[str, Any]], *, mel: MelConfig, seen: set[str]
) -> Iterator[Recording]:
    """Yields recordings one by one; adds a row that cannot be used to `bad`, with its `reason`.

    `seen` holds the ids of recordings that were read before; the new ids are added to it.
    """
    for one in found:
        try:
            if one.row["id"] in seen:
                raise BadAudio(f"{one.path}: its id '{one.row['id']}' was given before; rename it")
            frames = wav_to_mel(read_samples(one.path, mel), mel)
        except BadAudio as error:
            bad.append({**one.row, "reason": str(error)})
            continue
        seen.add(one.row["id"])
        yield Recording(one.path, one.row, frames)


def read_samples(path: str | Path, mel: MelConfig) -> Float[ndarray, " samples"]:
    """Reads a recording in any format and rate, and returns its samples at the rate of `mel`.

    Raises:
      BadAudio: it is missing, unreadable, empty, cut off, silent, too long or short, or holds NaN.
    """
    wav = read_wav(path, sample_rate=mel.sample_rate, max_seconds=MAX_SECONDS)
    if len(wav) <= mel.n_fft:
        raise BadAudio(f"{path}: is shorter than one mel window; record it again or drop its row")
    return wav
