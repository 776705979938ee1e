"""What a command is given, looked at before JAX is imported; verbs look by the same functions."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from speechlm_jax import artifacts
from speechlm_jax.audio.recordings import CLIPS
from speechlm_jax.audio.wav import check_file
from speechlm_jax.bundle.contents import check_bundle
from speechlm_jax.codes import CODES
from speechlm_jax.errors import UserError

AUDIO_SUFFIXES = (".wav", ".flac")  # that are written
RECORDINGS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")  # that are read
CHECKPOINT = "a run's folder, or one of its steps"


def check_places(places: Sequence[Path]) -> None:
    """UserError for the first place that is neither a file with something in it nor a folder with
    recordings, or with a manifest of them."""
    for place in places:
        if not os.path.isdir(place):  # pathlib's raises where a name is too long
            check_file(place)
        elif not os.path.isfile(os.path.join(place, CLIPS)):
            require_recordings(place)


def find_files(folder: Path) -> Iterator[Path]:
    """All files in and below a folder, but for hidden ones."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def require_recordings(folder: Path) -> None:
    """UserError where a folder without a manifest has no recordings in or below it."""
    if not any(path.suffix.lower() in RECORDINGS for path in find_files(folder)):
        raise UserError(
            f"{folder}: has no {CLIPS} and no recordings ({', '.join(RECORDINGS)}); give a "
            "folder that has"
        )


def check_out_folder(out: Path) -> None:
    """UserError where a folder is to be written and a file is."""
    if os.path.lexists(out) and not os.path.isdir(out):
        raise UserError(f"--out {out}: is a file; name a folder")


def check_speech(what: str, out: Path) -> None:
    """UserError where codes, a codes file, or text cannot be what is said, or `out` its audio.

    A folder of codes or a file of another kind is refused; a word may be the name of either.
    """
    if what.endswith(".jsonl"):
        if not os.path.isfile(what):
            raise UserError(f"{what}: {'is a folder' if os.path.isdir(what) else 'no such file'}")
        check_out_folder(out_folder(out))
        return
    if os.path.isfile(os.path.join(what, CODES)):
        raise UserError(f"{what}: is a folder; give its {CODES}")
    if Path(what).suffix and os.path.isfile(what):
        raise UserError(f"{what}: is a file of another kind; give a {CODES}, codes, or a text")
    if not what.strip():
        raise UserError(f"{what!r}: holds no words; give a text to say")
    check_out_audio(out)


def out_folder(out: Path) -> Path:
    """The folder of several clips: `out`, without the suffix of one."""
    return out.with_suffix("") if out.suffix.lower() in AUDIO_SUFFIXES else out


def check_out_audio(out: Path) -> None:
    """UserError where audio is to be written and the name is not that of such a file."""
    if out.suffix.lower() not in AUDIO_SUFFIXES or os.path.isdir(out):
        raise UserError(f"--out {out}: audio is written as .wav or .flac; name such a file")


def check_documents(file: Path) -> None:
    """UserError where a file of documents is none."""
    if os.path.isdir(file):
        raise UserError(f"{file}: is a folder; give documents in .txt or .jsonl")
    if not os.path.isfile(file):
        raise UserError(f"{file}: no such file; give documents in .txt or .jsonl")


def check_folder(folder: Path, wanted: str) -> None:
    """UserError where a folder is none; `wanted` says what it should be."""
    if not os.path.isdir(folder):
        what = "is a file" if os.path.lexists(folder) else "no such folder"
        raise UserError(f"{folder}: {what}; give {wanted}")


def check_source(source: Path, out: Path) -> None:
    """UserError where a model to convert is no folder, or what it is turned into is there."""
    check_folder(source, "a model folder of Hugging Face, or a run")
    artifacts.require_new(out)


def check_codes(place: Path) -> None:
    """UserError where a folder says of no codes what they are: it holds none, and is no bundle."""
    if not os.path.isfile(place / artifacts.MANIFEST):
        check_bundle(place)
