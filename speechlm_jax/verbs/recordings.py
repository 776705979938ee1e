"""Files, folders, manifests, tar files, addresses and standard input -> recordings, one by one."""

import contextlib
import dataclasses
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from speechlm_jax import bucket
from speechlm_jax.arrays import Float, ndarray
from speechlm_jax.audio.archives import RECORDINGS, is_tar, iter_tar
from speechlm_jax.audio.mel_config import MelConfig
from speechlm_jax.audio.recordings import (
    CLIPS,
    NO_WORDS,
    SeenIds,
    audio_path,
    iter_clips,
    read_clips,
)
from speechlm_jax.audio.wav import BadAudio, read_wav
from speechlm_jax.data.content import has_words
from speechlm_jax.verbs.paths import STDIN, require_recordings

MAX_SECONDS = 30.0  # of a question in a chat; the cost of attention grows with its square


@dataclasses.dataclass(frozen=True)
class Found:
    """A recording, or a row that cannot be one.

    Attributes:
      row: `id`, `audio` (relative) and the known fields.
      name: its path or address, for messages.
      source: its file, its address, or its bytes; None if there is a reason.
      reason: why it is set aside; "" if it is not.
    """

    row: dict[str, Any]
    name: str
    source: Path | str | bytes | None
    reason: str = ""

    @property
    def stamp(self) -> str:
        """Identity of the row and of its file (size and time of change)."""
        at = f"{len(self.source)} bytes" if isinstance(self.source, bytes) else ""
        if isinstance(self.source, Path):
            with contextlib.suppress(OSError):
                stat = self.source.stat()
                at = f"{stat.st_size} {stat.st_mtime_ns}"
        return f"{self.name} {at} {self.row!r} {self.reason}"


def find_recordings(
    places: Sequence[str | Path],
    *,
    audio_anywhere: bool = False,
    spool: Path | None = None,
) -> Iterator[Found]:
    """Yields the recordings of places one by one, also those that are set aside, with a `reason`.

    A place is a recording, a manifest (`*.jsonl`), a tar file (`audio.archives`), a folder of
    these, the address of one of them in a bucket, or `-`, which is standard input.

    A recording's row has the fields of its row in `manifest.jsonl`, which is in the folder or
    beside the file. For a recording that no manifest lists, the text is that of the .txt file of
    the same name (`clip.flac`, `clip.txt`). A folder without a manifest gives all recordings in and
    below it. A row whose text has no words is set aside, and so is a second one with an id. Ids and
    `audio` are relative to the folder, if `places` is one folder, and otherwise to the deepest
    common folder of those that are local.

    Args:
      spool: folder for what standard input brings.

    Raises:
      UserError: a folder has neither a manifest nor recordings.
    """
    finder, seen = _Finder(places, audio_anywhere, spool), SeenIds()
    for place in places:
        for one in finder.place(place):
            if not one.reason and not seen.add(one.row["id"]):
                reason = f"{one.name}: its id '{one.row['id']}' was given before; rename it"
                one = dataclasses.replace(one, source=None, reason=reason)
            yield one


class _Finder:
    """Finder of recordings.

    Attributes:
      home: folder that ids and `audio` of local recordings are relative to.
      audio_anywhere: true to allow recordings outside of their folder.
    """

    def __init__(
        self, places: Sequence[str | Path], audio_anywhere: bool, spool: Path | None
    ) -> None:
        self.home, self.audio_anywhere, self._spool = _home(places), audio_anywhere, spool
        self._beside: dict[Path, dict[str, tuple[dict[str, Any], str]]] = {}

    def place(self, place: str | Path) -> Iterator[Found]:
        """Yields the recordings of one place."""
        if str(place) == STDIN:
            yield self._stdin()
        elif bucket.is_address(place):
            yield from self._address(str(place).rstrip("/"))
        elif os.path.isdir(place):
            yield from self._folder(Path(place))
        else:
            yield from self._file(Path(place))

    def _folder(self, folder: Path) -> Iterator[Found]:
        if (folder / CLIPS).is_file():
            yield from self._manifest(folder / CLIPS)
            return
        require_recordings(folder)
        for path in _walk(folder):
            if path.suffix.lower() not in RECORDINGS and not is_tar(path):
                continue
            try:
                audio_path(folder, str(path.relative_to(folder)), anywhere=self.audio_anywhere)
            except BadAudio as error:
                yield self._found(path, self._row(path.parent, {"audio": path.name}), str(error))
            else:
                yield from self._file(path)

    def _file(self, path: Path) -> Iterator[Found]:
        if path.suffix.lower() == ".jsonl":
            yield from self._manifest(path)
        elif is_tar(path):
            yield from self._tar(path, os.path.relpath(path, self.home))
        else:
            row, reason = self._known(path)
            yield self._found(path, self._row(path.parent, row), reason)

    def _manifest(self, manifest: Path) -> Iterator[Found]:
        """Yields every row of a manifest."""
        folder = manifest.parent
        for row, error in iter_clips(
            manifest, recordings=folder, audio_anywhere=self.audio_anywhere
        ):
            path = folder / str(row.get("audio", ""))
            yield self._found(path, self._row(folder, row), "" if error is None else str(error))

    def _tar(self, place: str | Path, name: str) -> Iterator[Found]:
        """Yields every recording of a tar file; its ids begin with the `name` of the file."""
        for member in iter_tar(place):
            if isinstance(member, BadAudio):
                yield self._found(place, {"id": name, "audio": name}, str(member))
                continue
            inside = f"{name}/{member.name}"
            row = {**member.fields, "id": inside, "audio": inside}
            yield self._found(f"{place}/{member.name}", row, "", member.data)

    def _address(self, address: str) -> Iterator[Found]:
        """Yields what is at an address: a file, or all files of a folder."""
        files = list(bucket.find_files(address))
        names = {file for file, _ in files}
        if not files:
            yield self._found(
                address, {"id": address, "audio": address}, f"{address}: no such object"
            )
        elif f"{address}/{CLIPS}" in names or address.endswith(".jsonl"):
            manifest = address if address.endswith(".jsonl") else f"{address}/{CLIPS}"
            folder = str(bucket.parent(manifest))
            for row, error in iter_clips(manifest, recordings=folder):
                reason = "" if error is None else str(error)
                yield self._found(f"{folder}/{row.get('audio')}", row, reason)
        else:
            for file, _ in files:
                row = {"id": file, "audio": file}
                if is_tar(file):
                    yield from self._tar(file, file)
                elif file == address or file.lower().endswith(RECORDINGS):
                    yield self._found(file, row)

    def _stdin(self) -> Found:
        row = {"id": "stdin", "audio": STDIN}
        if self._spool is None:
            return self._found(STDIN, row, "", sys.stdin.buffer.read())
        with open(self._spool / "stdin", "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        return Found(row, STDIN, self._spool / "stdin")

    def _known(self, path: Path) -> tuple[dict[str, Any], str]:
        """Returns a file's row, and the reason why it cannot be used, or ""."""
        folder = path.parent
        if folder not in self._beside:
            self._beside[folder] = {}
            if (folder / CLIPS).is_file():
                clips = read_clips(folder, audio_anywhere=self.audio_anywhere)
                rows = [(row, row["reason"]) for row in clips.bad] + [(r, "") for r in clips.rows]
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

    def _found(
        self, name: str | Path, row: dict[str, Any], reason: str = "", data: bytes | None = None
    ) -> Found:
        """Returns a recording; checks what its row says."""
        audio = str(row["audio"]) if "audio" in row else str(row["id"])
        plain = audio.encode(errors="replace").decode()
        if plain != audio:
            row, reason = (
                {"id": plain, "audio": plain},
                f"{plain}: its name is not UTF-8; rename it",
            )
        text = row.get("text")
        if not reason and "text" in row and not (isinstance(text, str) and has_words(text)):
            reason = f"{name}: {NO_WORDS}"
        if reason:
            return Found(row, str(name), None, reason)
        return Found(row, str(name), name if data is None else data)


def _walk(folder: Path) -> Iterator[Path]:
    """Yields all files in and below a folder in the order of their paths, one by one."""
    with os.scandir(folder) as entries:
        listed = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    for name, is_folder in listed:
        if name.startswith("."):
            continue
        if is_folder:
            yield from _walk(folder / name)
        else:
            yield folder / name


def _transcript(path: Path, *, anywhere: bool) -> tuple[str | None, str]:
    """Returns the text of the .txt file beside a recording, and the reason why it cannot be used.

    They are None and "" if there is no such file.
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
        return text, ""
    except UnicodeDecodeError:
        return None, f"{beside}: is not UTF-8; convert it, e.g. `iconv -t utf-8`"


def _home(places: Sequence[str | Path]) -> Path:
    """Returns the only place if it is a folder; otherwise the deepest folder with all places."""
    local = [Path(p) for p in places if str(p) != STDIN and not bucket.is_address(p)]
    if len(local) == 1 and local[0].is_dir():
        return local[0]
    if not local:
        return Path()
    return Path(os.path.commonpath([os.path.abspath(place.parent) for place in local]))


def read_samples(path: str | Path, mel: MelConfig) -> Float[ndarray, " samples"]:
    """Reads a recording in any format and rate, and returns its samples at the rate of `mel`.

    Raises:
      BadAudio: it is missing, unreadable, empty, cut off, silent, too long or short, or holds NaN.
    """
    wav = read_wav(path, sample_rate=mel.sample_rate, max_seconds=MAX_SECONDS)
    if len(wav) <= mel.n_fft:
        raise BadAudio(f"{path}: is shorter than one mel window; record it again or drop its row")
    return wav
