"""Gives an MPEG audio stream a true header, so that a decoder reads it to its end.

A decoder takes the length of an mp3 from its first frame (a Xing, Info or VBRI tag), or guesses it
from that frame's bit rate. If the tag is missing or wrong, or if several files were joined, it
stops early. This module walks the frames themselves (ISO/IEC 11172-3, 13818-3).
"""

import dataclasses
import mmap
import re
from collections.abc import Iterator

Data = bytes | mmap.mmap
LAYERS = {3: 1, 2: 2, 1: 3}  # the header's two bits
RATES_HZ = (44_100, 48_000, 32_000)  # of MPEG 1; halved in MPEG 2, and again in 2.5
HALVINGS = {3: 0, 2: 1, 0: 2}  # the header's two bits of version
_LOW = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
KILOBITS = {  # by (is MPEG 1, layer), from the header's bit rate 1 on
    (True, 1): tuple(range(32, 449, 32)),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): _LOW,
    (False, 3): _LOW,
}
PADDING_SECONDS = 1.0  # more than an encoder's delay and padding, which stay below 8,192 samples
_START = re.compile(rb"\xff[\xe0-\xff]|ID3")
TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN")  # what may follow the last frame


class BrokenStream(Exception):
    """A fault of a stream, to be reported with its file."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame's place and size in bytes, and the properties that all frames of a stream share."""

    start: int
    size: int
    samples: int
    rate_hz: int
    channels: int
    layer: int
    is_mpeg1: bool
    kilobits: int

    @property
    def kind(self) -> tuple[int, ...]:
        """Equal in all frames of a stream; with the bit rate in layers 1 and 2, which lack tags."""
        constant = 0 if self.layer == 3 else self.kilobits
        return self.samples, self.rate_hz, self.channels, self.layer, constant


def to_whole_stream(data: Data, *, max_seconds: float | None = None) -> bytes:
    """Returns the audio frames of `data` behind a tag that counts them.

    Everything else (ID3 tags, pictures, garbage, tags of joined files) is left out. A first tag
    that counts right stays as it is, with the delay and padding that an encoder wrote there.

    Raises:
      BrokenStream: the stream has fewer frames than its tags count, a frame that is cut off, no
        frame, another format from some frame on, or more than `max_seconds`.
    """
    tags, sound, seconds, kind = [], [], 0.0, None
    for frame in _walk(data):
        kind = kind or frame.kind
        if frame.kind != kind:
            raise BrokenStream(
                f"changes its sample rate or channels after {seconds:.2f} s; cut it there"
            )
        (tags if _is_tag(data, frame) else sound).append(frame)
        seconds = len(sound) * frame.samples / frame.rate_hz
        if max_seconds is not None and seconds > max_seconds + PADDING_SECONDS:
            raise BrokenStream(f"lasts longer than {max_seconds:g} s; cut it")
    if not sound:
        raise BrokenStream("holds no frame of MPEG audio whose size is known; convert it to flac")
    counted = sum(_count(data, tag) for tag in tags)
    if counted > len(sound) + len(tags):  # some encoders count the tag itself
        claimed = seconds * counted / len(sound)
        raise BrokenStream(f"is truncated: holds {seconds:.2f} of {claimed:.2f} s; copy it again")
    is_counted = len(tags) == 1 and tags[0].start < sound[0].start and counted >= len(sound)
    first = _bytes(data, tags[0]) if is_counted else _make_tag(data, sound)
    return first + b"".join(_bytes(data, frame) for frame in sound)


def _walk(data: Data) -> Iterator[Frame]:
    """Yields the frames in order; after other bytes, only one that a frame or the end follows."""
    at, follows = 0, False
    while at < len(data):
        if tag := id3_size(data[at : at + 10]):
            at, follows = at + tag, True
            continue
        frame = _frame_at(data, at)
        if frame is not None and (follows or _is_followed(data, frame)):
            if at + frame.size > len(data):
                raise BrokenStream("is truncated: its last frame is cut off; copy it again")
            yield frame
            at, follows = at + frame.size, True
            continue
        found = _START.search(data, at + 1)
        at, follows = found.start() if found else len(data), False


def _is_followed(data: Data, frame: Frame) -> bool:
    after = frame.start + frame.size
    following = _frame_at(data, after)
    if following is not None:
        return following.kind[:4] == frame.kind[:4]
    return after == len(data) or data[after : after + 11].startswith(TAGS)


def _frame_at(data: Data, at: int) -> Frame | None:
    """Returns the frame whose header is at `at`; None for free format, whose size is unknown."""
    head = data[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, LAYERS.get(head[1] >> 1 & 3)
    rate, bit_rate = head[2] >> 2 & 3, head[2] >> 4
    if version not in HALVINGS or layer is None or rate == 3 or bit_rate in (0, 15):
        return None
    rate_hz = RATES_HZ[rate] >> HALVINGS[version]
    is_mpeg1 = version == 3
    samples = 384 if layer == 1 else 1152 if layer == 2 or is_mpeg1 else 576
    kilobits = KILOBITS[is_mpeg1, layer][bit_rate - 1]
    slot = 4 if layer == 1 else 1
    size = slot * (samples // 8 // slot * kilobits * 1000 // rate_hz + (head[2] >> 1 & 1))
    channels = 1 if head[3] >> 6 == 3 else 2
    return Frame(at, size, samples, rate_hz, channels, layer, is_mpeg1, kilobits)


def id3_size(head: bytes) -> int:
    """Returns the bytes of the ID3v2 tag that begins with `head` (10 bytes); 0 if none does."""
    if len(head) < 10 or head[:3] != b"ID3" or max(head[6:10]) > 0x7F:
        return 0
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte
    return 10 + size + (10 if head[5] & 0x10 else 0)


def _tag_start(frame: Frame) -> int:
    """Returns the place of a Xing or Info tag in a frame: after the side information of layer 3."""
    side = {(True, 1): 17, (True, 2): 32, (False, 1): 9, (False, 2): 17}
    return 4 + side[frame.is_mpeg1, frame.channels]


def _is_tag(data: Data, frame: Frame) -> bool:
    start = frame.start + _tag_start(frame)
    is_vbri = data[frame.start + 36 : frame.start + 40] == b"VBRI"
    return frame.layer == 3 and (is_vbri or data[start : start + 4] in (b"Xing", b"Info"))


def _count(data: Data, frame: Frame) -> int:
    """Returns the number of frames that a tag counts; 0 if it does not say."""
    start = frame.start + _tag_start(frame)
    if data[frame.start + 36 : frame.start + 40] == b"VBRI":
        return int.from_bytes(data[frame.start + 50 : frame.start + 54], "big")
    flags, frames = data[start + 4 : start + 8], data[start + 8 : start + 12]
    return int.from_bytes(frames, "big") if int.from_bytes(flags, "big") & 1 else 0


def _make_tag(data: Data, sound: list[Frame]) -> bytes:
    """Returns a silent frame that counts the others; b"" for layers 1 and 2, of one bit rate."""
    frame = sound[0]
    if frame.layer != 3:
        return b""
    head = bytearray(data[frame.start : frame.start + 4])
    head[1] |= 1  # no checksum
    head[2] = 0xE0 | head[2] & 0x0C  # enough room: the highest bit rate, no padding
    size = _frame_at(bytes(head), 0)
    assert size is not None
    tag = b"Xing" + (1).to_bytes(4, "big") + len(sound).to_bytes(4, "big")
    return (bytes(head) + bytes(_tag_start(frame) - 4) + tag).ljust(size.size, b"\0")


def _bytes(data: Data, frame: Frame) -> bytes:
    return bytes(data[frame.start : frame.start + frame.size])
