"""Every frame of an mp3 is read, whatever its first frame says of their number."""

import io

import numpy as np
import pytest
import soundfile
from scipy import signal

from speechlm_jax.audio.mp3 import BrokenStream, id3_size, to_whole_stream
from speechlm_jax.audio.wav import BadAudio, read_wav

ID3 = b"ID3\x04\0\0\0\0\x08\0" + b"\xff\xfb\x90\xc4" * 256  # a picture with false headers
RATES = [8_000, 16_000, 44_100]  # MPEG 2.5, 2, 1
DELAY = 0.3  # seconds that an encoder may add


def sound(rate: int, channels: int = 1, seconds: float = 3.0) -> np.ndarray:
    """A tone, then noise: a variable rate spends a few bits, then many."""
    time = np.arange(int(rate * seconds)) / rate
    noise = np.random.default_rng(0).normal(0, 0.2, len(time))
    wav = np.where(time < 1, 0.3 * np.sin(2 * np.pi * 300 * time), noise)
    return np.stack([wav] * channels, axis=1)


def encoded(rate: int, *, channels: int = 1, mode: str = "VARIABLE") -> bytes:
    file = io.BytesIO()
    soundfile.write(
        file, sound(rate, channels), rate, format="MP3", bitrate_mode=mode, compression_level=0.3
    )
    return file.getvalue()


def tag_at(data: bytes) -> int:
    return max(data.find(b"Xing"), data.find(b"Info"))


def without_tag(data: bytes) -> bytes:
    return data[: tag_at(data)] + bytes(4) + data[tag_at(data) + 4 :]


def with_count(data: bytes, frames: int) -> bytes:
    at = tag_at(data) + 8
    return data[:at] + frames.to_bytes(4, "big") + data[at + 4 :]


def decoded(data: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)[0]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("mode", ["CONSTANT", "AVERAGE", "VARIABLE"])
def test_a_good_file_gives_the_samples_that_it_gave_before(rate, mode):
    data = encoded(rate, channels=1 + (rate > 16_000), mode=mode)
    assert np.array_equal(decoded(to_whole_stream(data)), decoded(data))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_missing_or_wrong_tag_costs_no_sound(rate, channels):
    data = encoded(rate, channels=channels)
    wanted = sound(rate, channels)
    for spoilt in (without_tag(data), with_count(data, 20), with_count(data, 0)):
        wav = decoded(to_whole_stream(spoilt))
        assert 0 <= len(wav) - len(wanted) < DELAY * rate
        # The last half second is there, wherever the encoder's delay puts it.
        tail = wanted[-rate // 2 : -rate // 4, 0]
        match = signal.correlate(wav[-rate:, 0], tail, "valid").max()
        assert match > 0.7 * np.sum(tail**2)


def test_what_was_joined_is_read_to_the_end(tmp_path):
    data = encoded(16_000)
    half = len(data) // 2
    for name, joined, seconds in (
        ("two", data + data, 6),
        ("tagged", ID3 + data + ID3 + data + b"TAG" + bytes(125), 6),
        ("zeros between", data + bytes(5_000) + data, 6),
        ("zeros inside", data[:half] + bytes(5_000) + data[half:], 3),
        ("noise around", np.random.default_rng(1).bytes(5_000) + data + b"y" * 5_000, 3),
    ):
        (tmp_path / f"{name}.wav").write_bytes(joined)  # whatever its name
        wav = read_wav(tmp_path / f"{name}.wav")
        assert 0 <= len(wav) / 16_000 - seconds < DELAY, name


def test_what_is_cut_off_or_changes_is_refused():
    data, other = encoded(16_000), encoded(22_050)
    for broken, told in (
        (data[: len(data) // 2], "last frame is cut off"),
        (without_tag(data)[: len(data) // 2], "last frame is cut off"),
        (with_count(data, 200), r"truncated: holds 3\.\d\d of 7\.20 s"),
        (data + other, r"changes its sample rate or channels after 3\.\d\d s"),
        (data + encoded(16_000, channels=2), "changes its sample rate or channels"),
        (b"no frame at all", "holds no frame"),
    ):
        with pytest.raises(BrokenStream, match=told):
            to_whole_stream(broken)


def test_a_long_stream_is_refused_before_it_is_decoded(tmp_path):
    (tmp_path / "long.mp3").write_bytes(without_tag(encoded(16_000)) * 3)
    with pytest.raises(BadAudio, match="longer than 4 s; cut it"):
        read_wav(tmp_path / "long.mp3", max_seconds=4.0)


def test_an_id3_tag_says_its_size_in_seven_bits_a_byte():
    assert id3_size(ID3[:10]) == len(ID3)
    assert id3_size(b"ID3\x04\0\x10\0\0\x01\x02") == 10 + 130 + 10
    assert id3_size(b"ID3\x04\0\0\0\0\xff\x02") == id3_size(b"TAG") == 0
