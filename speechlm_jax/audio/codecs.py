"""Names the codec or container of a file that libsndfile cannot read, from its first bytes."""

from pathlib import Path

_STARTS = {
    b"\x1aE\xdf\xa3": "Matroska or WebM",
    b"0&\xb2u\x8ef\xcf\x11": "Windows Media (ASF)",
    b".RMF": "RealMedia",
    b"#!AMR": "AMR",
    b"wvpk": "WavPack",
    b"MAC ": "Monkey's Audio",
    b"TTA1": "True Audio",
    b"FLV\x01": "Flash video",
    b"MThd": "MIDI",
    b"DSD ": "DSD",
    b"ADIF": "AAC",
}
_WAV_CODECS = {  # format tags of Microsoft's mmreg.h
    0x0022: "TrueSpeech", 0x0042: "G.723.1", 0x0045: "G.726 ADPCM",
    0x0083: "G.729", 0x00FF: "AAC", 0x0130: "ACELP.net", 0x0160: "Windows Media Audio 1",
    0x0161: "Windows Media Audio 2", 0x0162: "Windows Media Audio Pro", 0x0270: "ATRAC3",
    0x1610: "HE-AAC", 0x2000: "AC-3", 0x2001: "DTS", 0x4143: "AMR", 0xA109: "Speex",
}  # fmt: skip
_WAV_READ = (0, 1, 2, 3, 6, 7, 0x11, 0x31, 0x55, 0x64, 0x65, 0xFFFE)  # by libsndfile
_OGG_CODECS = {b"Speex   ": "Speex", b"\x80theora": "Theora video", b"fishead\0": "Ogg Skeleton"}
_PAGE = 28  # bytes of an Ogg page before its first packet, with one segment


def foreign_codec(source: str | Path | bytes) -> str | None:
    """Returns the codec of a file, or of its bytes; None if it is not one of those known here."""
    if isinstance(source, bytes):
        head = source[:4096]
    else:
        with open(source, "rb") as file:
            head = file.read(4096)
    for start, name in _STARTS.items():
        if head.startswith(start):
            return name
    if head[4:8] == b"ftyp":
        return "AAC or ALAC in MPEG-4 (.m4a, .mp4)"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "AAC (ADTS)"
    if head[:4] == b"OggS":
        return next((n for start, n in _OGG_CODECS.items() if head[_PAGE:].startswith(start)), None)
    return _wav_codec(head) if head[:4] in (b"RIFF", b"RF64") else None


def _wav_codec(head: bytes) -> str | None:
    at = head.find(b"fmt ")
    if at < 0 or len(head) < at + 10:
        return None
    tag = int.from_bytes(head[at + 8 : at + 10], "little")
    return None if tag in _WAV_READ else _WAV_CODECS.get(tag, f"codec {tag:#06x} in wav")
