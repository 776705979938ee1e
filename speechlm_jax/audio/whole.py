"""Opens a recording so that it is read to its end, or reports why it cannot be.

libsndfile trusts headers: it ignores what a truncated file lacks, and what lies after the length
that a header gives. This module walks the containers themselves: RIFF chunks (RF64: EBU Tech 3306),
Ogg pages (RFC 3533), FLAC frames (RFC 9639), MPEG audio (`audio.mp3`). For other kinds,
libsndfile's own log says whether a chunk is shorter than it claims.
"""

import dataclasses
import io
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import soundfile

from speechlm_jax.audio.mp3 import BrokenStream, id3_size, to_whole_stream

Data = bytes | mmap.mmap
STREAMED = 0x7FFF_F000  # lengths from here on mean "not known" (sox; ffmpeg writes 0xFFFFFFFF)
MP3_IN_WAV = 0x0055
SLACK_SECONDS, SLACK_BYTES = 0.1, 4_096  # may lie after the sound: tags, padding
COPY, REWRITE = "copy it again", "write it again, e.g. with `ffmpeg -i OLD NEW.flac`"
_SHORT = re.compile(r": (\d+) \(should be (\d+)\)")
_SPHERE_COUNT = re.compile(rb"sample_count -i (\d+)")  # of each channel (NIST SPHERE)
JOINED = (b".snd", b"caff")  # kinds of which libsndfile does not see a second file after the first
_FLAC_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_FLAC_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")


class SoundFile(soundfile.SoundFile):
    """A sound file that is read on, block by block.

    After each block soundfile seeks to the place where it is, if it can. In an mp3 the frames after
    that lack the bits that they keep in earlier ones.
    """

    def seekable(self) -> bool:
        """Returns false; `seek(0)` works all the same."""
        return False


def open_whole(source: str | Path | bytes, *, max_seconds: float | None = None) -> SoundFile:
    """Opens a sound file, or its bytes, of true length; where its header is wrong, it is mended.

    Raises:
      BrokenStream: it is cut off, or holds more than a reader of its header finds, or (MPEG audio)
        lasts longer than `max_seconds`.
      soundfile.LibsndfileError, OSError: it cannot be read.
    """
    if isinstance(source, bytes):
        return _open_whole(source, source, max_seconds)
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _open_whole(str(source), data, max_seconds)


def _open_whole(source: str | bytes, data: Data, max_seconds: float | None) -> SoundFile:
    start = id3_size(data[:10])
    walk = {b"RIFF": _wav, b"RF64": _wav, b"OggS": _ogg, b"fLaC": _flac}.get(
        data[start : start + 4]
    )
    mended = walk(data, start) if walk else None
    opened = SoundFile(_file(source, mended))
    if opened.format == "MP3":
        opened.close()
        stream = to_whole_stream(data, max_seconds=max_seconds)
        return SoundFile(io.BytesIO(stream))
    if walk is None:
        _check_other(data, opened)
    return opened


@dataclasses.dataclass(frozen=True)
class _Patch:
    """Bytes that stand instead of those at a place of a file."""

    at: int
    instead: bytes


def _file(source: str | bytes, mended: "_Patch | bytes | None") -> Any:
    """Returns what libsndfile opens: the source, a mended stream, or the source with a patch."""
    if isinstance(mended, bytes):
        return io.BytesIO(mended)
    opened = source if isinstance(source, str) else io.BytesIO(source)
    if mended is None:
        return opened
    return _Patched(open(source, "rb") if isinstance(source, str) else opened, mended)  # noqa: SIM115


class _Patched(io.RawIOBase):
    """A file of which a few bytes read otherwise; nothing is copied."""

    def __init__(self, file: Any, patch: _Patch):
        self._inner, self._patch = file, patch

    def readinto(self, buffer: Any) -> int:
        at = self._inner.tell()
        view = memoryview(buffer).cast("B")
        count = self._inner.readinto(view)
        first, instead = self._patch.at, self._patch.instead
        start, stop = max(at, first), min(at + count, first + len(instead))
        if start < stop:
            view[start - at : stop - at] = instead[start - first : stop - first]
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._inner.seek(offset, whence)

    def tell(self) -> int:
        return self._inner.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._inner.close()
        super().close()


def _check_other(data: Data, opened: soundfile.SoundFile) -> None:
    """Checks a file of a kind that is not walked: its log, a second file after it, its count."""
    rate = max(1, opened.samplerate)
    if data[:4] in JOINED and data.find(data[:8], 8) > 0:
        raise BrokenStream(
            f"holds another recording behind {opened.frames / rate:.2f} s; {REWRITE}"
        )
    counted = _SPHERE_COUNT.search(data[:1024]) if data[:7] == b"NIST_1A" else None
    if counted and int(counted[1]) != opened.frames:
        raise BrokenStream(
            f"is truncated or joined: holds {opened.frames / rate:.2f} s, and its header says "
            f"{int(counted[1]) / rate:.2f} s; {COPY}"
        )
    for claimed, found in _SHORT.findall(opened.extra_info):
        if int(found) < int(claimed) < STREAMED:
            raise BrokenStream(f"is truncated: holds {found} of {claimed} bytes; {COPY}")


def _wav(data: Data, at: int) -> "_Patch | bytes | None":
    """Returns the length of a wav file that lacks it, or the mp3 inside it; None if it is fine."""
    form, ds64 = b"", b""
    for name, start, size in _chunks(data, at + 12):  # noqa: B007
        if name == b"ds64":
            ds64 = data[start : start + 16]
        elif name == b"fmt ":
            form = data[start : start + 16]
        elif name == b"data":
            break
    else:
        return None  # libsndfile reports what is wrong
    rate = max(1, int.from_bytes(form[8:12], "little"))  # bytes a second
    left = len(data) - start
    if ds64:
        size = int.from_bytes(ds64[8:16], "little")
    is_zero = size == 0 and not _is_chunks(data, start)
    if is_zero or (size >= STREAMED and not ds64):
        size = left
    if int.from_bytes(form[:2], "little") == MP3_IN_WAV:
        return to_whole_stream(data[start : start + size])
    if size > left:
        raise BrokenStream(f"is truncated: holds {left / rate:.2f} of {size / rate:.2f} s; {COPY}")
    if not _is_end(data, start + size, most=int(SLACK_SECONDS * rate)):
        raise BrokenStream(
            f"has a header for {size / rate:.2f} of its {left / rate:.2f} s; {REWRITE}"
        )
    # More than 4 GiB is written as a length that is not known, which libsndfile reads to the end.
    return _Patch(start - 4, min(size, 0xFFFF_FFFF).to_bytes(4, "little")) if is_zero else None


def _chunks(data: Data, at: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields the name, start and size of each chunk."""
    while len(head := data[at : at + 8]) == 8:
        size = int.from_bytes(head[4:], "little")
        yield head[:4], at + 8, size
        at += 8 + size + size % 2


def _is_end(data: Data, end: int, *, most: int) -> bool:
    """Returns whether no more sound lies after the data chunk: chunks, a tag, or a few bytes."""
    if len(data) - end <= most or data[end : end + 3] == b"ID3":
        return True
    return _is_chunks(data, end) or _is_chunks(data, end + end % 2)


def _is_chunks(data: Data, at: int) -> bool:
    """Returns whether whole chunks, none of them another file, reach from `at` to the end."""
    end = at
    for name, start, size in _chunks(data, at):
        end = start + size
        if not (name.isascii() and name.decode().isprintable()) or name in (b"RIFF", b"RF64"):
            return False
    return end <= len(data) < end + 8


def _ogg(data: Data, at: int) -> None:
    """Checks that the pages are all those of one recording."""
    pages = list(_ogg_pages(data, at))
    if not pages or pages[-1].end > len(data) or not pages[-1].flags & 4:
        raise BrokenStream(f"is truncated (the file ends too early); {COPY}")
    begins = [bool(page.flags & 2) for page in pages]
    # All streams of one recording begin before the first of them goes on (RFC 3533, 4).
    if False in begins and True in begins[begins.index(False) :]:
        ends = [page.seconds for page in pages if page.flags & 4]
        raise BrokenStream(
            f"holds {len(ends)} recordings in a chain; {ends[0]:.2f} of {sum(ends):.2f} s would be "
            f"read; {REWRITE}"
        )
    last: dict[int, int] = {}  # by stream: the number of its last page
    for page in pages:
        if page.number != last.get(page.stream, page.number - 1) + 1:
            raise BrokenStream(f"is damaged: pages of it are missing; {COPY}")
        last[page.stream] = page.number


@dataclasses.dataclass(frozen=True)
class _Page:
    """An Ogg page: fields of its header, and where it ends."""

    flags: int
    stream: int
    number: int
    seconds: float
    end: int


def _ogg_pages(data: Data, at: int) -> Iterator[_Page]:
    rates: dict[int, int] = {}
    while len(head := data[at : at + 27]) == 27 and head.startswith(b"OggS"):
        sizes = data[at + 27 : at + 27 + head[26]]
        body = at + 27 + len(sizes)
        flags, stream = head[5], int.from_bytes(head[14:18], "little")
        if flags & 2:  # positions of Opus are in 48 kHz (RFC 7845, 4)
            packet = data[body : body + 16]
            is_opus = packet.startswith(b"OpusHead")
            rates[stream] = 48_000 if is_opus else int.from_bytes(packet[12:16], "little")
        position = int.from_bytes(head[6:14], "little", signed=True)
        seconds = position / max(1, rates.get(stream, 1))
        at = body + sum(sizes)
        yield _Page(flags, stream, int.from_bytes(head[18:22], "little"), seconds, at)


def _flac(data: Data, at: int) -> _Patch | None:
    """Returns the length of a FLAC file that lacks it; None if its length is there and true."""
    total = int.from_bytes(data[at + 21 : at + 26], "big") & 0xF_FFFF_FFFF
    rate = max(1, int.from_bytes(data[at + 18 : at + 21], "big") >> 4)
    found, left, largest = _flac_frames(data, at)
    if _FLAC_START.search(data, at + 4):
        raise BrokenStream(f"holds another recording behind {total / rate:.2f} s; {REWRITE}")
    if found > total > 0:
        raise BrokenStream(
            f"has a header for {total / rate:.2f} of its {found / rate:.2f} s; {REWRITE}"
        )
    if found < total:
        raise BrokenStream(
            f"is truncated: holds {found / rate:.2f} of {total / rate:.2f} s; {COPY}"
        )
    if total:
        return None
    if left > largest:
        raise BrokenStream(f"is damaged after {found / rate:.2f} s; {COPY}")
    known = int.from_bytes(data[at + 21 : at + 26], "big") | found
    return _Patch(at + 21, known.to_bytes(5, "big"))


def _flac_frames(data: Data, at: int) -> tuple[int, int, int]:
    """Returns samples in all frames, bytes from the last frame on, and their upper limit."""
    samples, expected, start, block = 0, None, len(data), 0
    for match in _FLAC_SYNC.finditer(data, _flac_blocks_end(data, at)):
        head = data[match.start() : match.start() + 16].ljust(16, b"\0")
        frame = _flac_header(head)
        if frame is not None and expected in (None, frame[0]):
            number, block = frame
            start, samples = match.start(), samples + block
            expected = number + (block if head[1] & 1 else 1)
    channels = 1 + (int.from_bytes(data[at + 20 : at + 21], "big") >> 1 & 7)
    return samples, len(data) - start, block * channels * 4 + SLACK_BYTES


def _flac_blocks_end(data: Data, at: int) -> int:
    """Returns where the frames begin: after the blocks of metadata."""
    at += 4
    while len(head := data[at : at + 4]) == 4:
        at += 4 + int.from_bytes(head[1:], "big")
        if head[0] & 0x80:
            break
    return at


def _flac_header(head: bytes) -> tuple[int, int] | None:
    """Returns number and samples of the frame of this header; None if its checksum is wrong."""
    code = head[2] >> 4
    if code == 0 or head[3] & 1:
        return None
    # The number is coded as in UTF-8: as many bytes as there are leading ones.
    ones = 8 - (head[4] ^ 0xFF).bit_length()
    length = max(1, ones)
    number = head[4] & (0xFF >> (ones + 1))
    for byte in head[5 : 4 + length]:
        number = number << 6 | byte & 0x3F
    at = 4 + length
    extra = {6: 1, 7: 2}.get(code, 0)
    if extra:
        block = 1 + int.from_bytes(head[at : at + extra], "big")
    else:
        block = (
            192 if code == 1 else 576 << (code - 2) if 2 <= code <= 5 else 256 << max(0, code - 8)
        )
    at += extra + {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    return (number, block) if at < len(head) and _crc8(head[:at]) == head[at] else None


def _crc8(data: bytes) -> int:
    """Returns the checksum of a frame's header, by the polynomial x^8 + x^2 + x + 1."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ (0x07 if crc & 0x80 else 0)) & 0xFF
    return crc
