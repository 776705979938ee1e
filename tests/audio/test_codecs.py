"""A file of a codec that is not read is refused by the codec's name."""

import io

import numpy as np
import pytest
import soundfile

from speechlm_jax.audio.codecs import foreign_codec
from speechlm_jax.audio.wav import BadAudio, read_wav

NOISE = np.random.default_rng(0).normal(0, 0.1, 16_000)
OGG = b"OggS\x00\x06" + bytes(20) + b"\x01\x50"


def with_tag(tag: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, NOISE, 16_000, format="WAV")
    data = bytearray(file.getvalue())
    data[20:22] = tag.to_bytes(2, "little")
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\x00\x00\x00\x20ftypM4A \x00" + bytes(99), "MPEG-4"),
        (b"\x1aE\xdf\xa3" + bytes(99), "WebM"),
        (b"\xff\xf1\x50\x80" + bytes(99), "AAC"),
        (b"#!AMR\n" + bytes(99), "AMR"),
        (OGG + b"Speex   1.2".ljust(80, b"\0"), "Speex"),
        (with_tag(0x0161), "Windows Media Audio 2"),
        (with_tag(0x7777), "codec 0x7777 in wav"),
    ],
)
def test_the_codec_is_named_with_what_to_do(tmp_path, data, name):
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(BadAudio, match=f"a.wav: .*{name}.*libsndfile lacks.*ffmpeg"):
        read_wav(tmp_path / "a.wav")


@pytest.mark.parametrize("kind", sorted(set(soundfile.available_formats()) - {"RAW", "SD2"}))
def test_what_libsndfile_writes_is_no_foreign_codec(kind):
    file = io.BytesIO()
    try:
        soundfile.write(file, NOISE, 16_000, format=kind)
    except (soundfile.LibsndfileError, ValueError):
        pytest.skip("libsndfile writes it in no default subtype")
    assert foreign_codec(file.getvalue()) is None
