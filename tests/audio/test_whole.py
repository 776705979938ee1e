"""A recording is read to its end, or refused with what is missing: no file is half read."""

import io
import struct

import numpy as np
import pytest
import soundfile

from speechlm_jax.audio.wav import BadAudio, read_wav

SAMPLES = 48_000  # three seconds at 16 kHz
NOISE = np.random.default_rng(0).normal(0, 0.1, SAMPLES).astype(np.float32)


def encoded(kind: str, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, NOISE, 16_000, format=kind, subtype=subtype)
    return file.getvalue()


def with_data_size(wav: bytes, size: int) -> bytes:
    at = wav.index(b"data") + 4
    return wav[:at] + struct.pack("<I", size) + wav[at + 4 :]


def with_total(flac: bytes, samples: int) -> bytes:
    """With other total samples in STREAMINFO, 36 bits."""
    known = int.from_bytes(flac[21:26], "big") >> 36 << 36 | samples
    return flac[:21] + known.to_bytes(5, "big") + flac[26:]


def read(tmp_path, data: bytes, name: str = "clip.audio") -> np.ndarray:
    (tmp_path / name).write_bytes(data)
    return read_wav(tmp_path / name)


CONTAINERS = ["WAV", "WAVEX", "RF64", "FLAC", "AIFF", "AU", "W64"]


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_whole_file_is_read_and_one_that_is_cut_off_never(tmp_path, kind):
    data = encoded(kind)
    assert len(read(tmp_path, data)) == SAMPLES
    for part in (0.1, 0.5, 0.9):
        with pytest.raises(BadAudio, match=r"truncated|lost sync"):
            read(tmp_path, data[: int(part * len(data))])


@pytest.mark.parametrize("kind", ["AU", "CAF", "NIST"])
def test_of_two_files_joined_not_one_is_read_alone(tmp_path, kind):
    data = encoded(kind)
    assert len(read(tmp_path, data)) == SAMPLES
    with pytest.raises(BadAudio, match=r"another recording behind 3\.00 s|says 3\.00 s"):
        read(tmp_path, data + data)


def test_a_sphere_file_holds_what_its_header_counts(tmp_path):
    data = encoded("NIST")
    with pytest.raises(BadAudio, match=r"holds 1\.4\d s, and its header says 3\.00 s"):
        read(tmp_path, data[: len(data) // 2])


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_file_has_all_its_pages_and_one_recording(tmp_path, subtype):
    data = encoded("OGG", subtype)
    assert len(read(tmp_path, data + b"\0" * 50)) == SAMPLES
    pages = [b"OggS" + page for page in data.split(b"OggS")[1:]]
    for broken, told in (
        (data[: len(data) // 2], "truncated"),
        (b"".join(pages[:-2] + pages[-1:]), "pages of it are missing"),
        (data + data, r"2 recordings in a chain; 3\.0\d of 6\.0\d s"),
    ):
        with pytest.raises(BadAudio, match=told):
            read(tmp_path, broken)


@pytest.mark.parametrize("size", [0, 0x7FFF_F000, 0xFFFF_FFFF])
def test_a_wav_that_was_streamed_is_read_to_its_end(tmp_path, size):
    assert np.abs(read(tmp_path, with_data_size(encoded("WAV"), size)) - NOISE).max() < 1e-4


def test_a_wav_with_more_sound_than_its_header_says_is_refused_with_both_lengths(tmp_path):
    wav = encoded("WAV")
    for data, lengths in (
        (with_data_size(wav, 32_000), "1.00 of its 3.00 s"),
        (wav + wav, "3.00 of its 6.00 s"),
    ):
        with pytest.raises(BadAudio, match=f"has a header for {lengths}"):
            read(tmp_path, data)


def test_what_follows_the_sound_of_a_wav_is_no_fault(tmp_path):
    wav = encoded("WAV")
    comment = b"LIST" + struct.pack("<I", 40_000) + b"INFO" + bytes(39_996)
    for data in (wav + comment, wav + b"TAG" + bytes(125), wav + b"ID3\x04" + bytes(9_000)):
        assert len(read(tmp_path, data)) == SAMPLES
    with pytest.raises(BadAudio, match="is empty"):
        read(tmp_path, with_data_size(wav[:44], 0) + comment)


def test_a_flac_that_was_streamed_is_read_to_its_end(tmp_path):
    streamed = with_total(encoded("FLAC"), 0)
    assert np.abs(read(tmp_path, streamed) - NOISE).max() < 1e-4
    with pytest.raises(BadAudio, match="lost sync"):
        read(tmp_path, streamed[: len(streamed) // 2])
    with pytest.raises(BadAudio, match="damaged after 1.0"):
        read(tmp_path, streamed[: len(streamed) // 3] + bytes(len(streamed)))


def test_silence_has_small_flac_frames_and_is_counted_whole(tmp_path):
    file = io.BytesIO()
    sound = np.concatenate([NOISE[:16_000], np.zeros(32_000, np.float32)])
    soundfile.write(file, sound, 16_000, format="FLAC")
    assert len(read(tmp_path, with_total(file.getvalue(), 0))) == SAMPLES


@pytest.mark.parametrize(
    ("samples", "told"),
    [
        (16_000, "header for 1.00 of its 3.00 s"),
        (96_000, "holds 3.00 of 6.00 s"),
        (2**36 - 1, "holds 3.00 of 4294967.30 s"),
    ],
)
def test_a_flac_header_that_is_wrong_is_refused_with_both_lengths(tmp_path, samples, told):
    with pytest.raises(BadAudio, match=told):
        read(tmp_path, with_total(encoded("FLAC"), samples))


def test_two_flac_files_in_one_and_tags_around_one(tmp_path):
    flac = encoded("FLAC")
    with pytest.raises(BadAudio, match="another recording behind 3.00 s"):
        read(tmp_path, flac + flac)
    tag = b"ID3\x04\0\0\0\0\x04\0" + bytes(512)
    assert len(read(tmp_path, tag + flac + b"TAG" + bytes(125))) == SAMPLES


def test_what_is_no_audio_is_refused_by_what_it_is(tmp_path):
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(BadAudio, match="is no file"):
        read_wav(tmp_path / "folder.wav")
    aac = b"\xff\xf1\x50\x80\x10\x1f\xfc" + np.random.default_rng(0).bytes(9_000)
    with pytest.raises(BadAudio, match="not readable audio"):
        read(tmp_path, aac, "clip.aac")
    for name in ("a\0b.wav", "x" * 300 + ".wav"):
        with pytest.raises(BadAudio, match="no such|too long"):
            read_wav(tmp_path / name)
