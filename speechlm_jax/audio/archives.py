"""Reads recordings from tar files in the layout of WebDataset, one after the other.

The files of a sample follow each other and share a name up to its first dot: `0001.flac`,
`0001.txt` (what is said), `0001.json` (further fields). Nothing is extracted: a member's name is
only a name.
"""

import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from speechlm_jax import bucket
from speechlm_jax.audio.wav import BadAudio

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
RECORDINGS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")  # formats of read audio


class Member(NamedTuple):
    """A recording of a tar file: its name, its bytes, and the fields that are known of it."""

    name: str
    data: bytes
    fields: dict[str, Any]


def is_tar(place: str | Path) -> bool:
    """Returns whether a place is named as a tar file."""
    return str(place).lower().endswith(TARS)


def iter_tar(place: str | Path) -> Iterator[Member | BadAudio]:
    """Yields the recordings of a local tar file, or of one in a bucket, plain or compressed.

    Where the rest cannot be read, the last item is the error.
    """
    try:
        opened = bucket.open_file(str(place)) if bucket.is_address(place) else open(place, "rb")
        with opened as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            for _, members in groupby(_files(tar), key=lambda named: _split(named[0])[0]):
                yield from _recordings(list(members))
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or error
        yield BadAudio(f"{place}: is damaged or cut off, or no tar file ({reason}); copy it again")


def _files(tar: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in tar:
        tar.members = []  # it would keep them all
        file = tar.extractfile(member) if member.isreg() else None
        if file is not None:
            yield member.name, file.read()


def _split(name: str) -> tuple[str, str]:
    """Returns what a sample's names share, and the rest: at the first dot of the last part."""
    folder, slash, last = name.rpartition("/")
    key, _, rest = last.partition(".")
    return f"{folder}{slash}{key}", rest.lower()


def _recordings(members: list[tuple[str, bytes]]) -> Iterator[Member]:
    """Yields the recordings of one sample."""
    fields: dict[str, Any] = {}
    for name, data in members:
        kind = _split(name)[1]
        if kind == "json":
            fields = {**_object(data), **fields}
        elif kind == "txt":
            fields["text"] = data.decode("utf-8-sig", errors="replace").strip()
    for name, data in members:
        if name.lower().endswith(RECORDINGS):
            yield Member(name, data, fields)


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
