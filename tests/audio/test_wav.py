"""Any recording becomes float32 mono at the wanted rate, or one line that says why not."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechlm_jax.audio.wav import BadAudio, level_db, read_wav, wav_to_file, write_wav
from speechlm_jax.errors import UserError

DATA = Path(os.environ.get("SPEECHLM_DATA", Path(__file__).parents[3] / "shared/data"))
FORMATS = [("wav", None), ("flac", None), ("ogg", "VORBIS"), ("mp3", None)]


def tone(rate: int, *, seconds: float = 1.0, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def middle(wav: np.ndarray) -> np.ndarray:
    return wav[2_000:-2_000]


@pytest.mark.parametrize(("suffix", "subtype"), FORMATS)
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_every_format_rate_and_channel_count_gives_the_same_tone(tmp_path, suffix, subtype, rate):
    path = tmp_path / f"tone.{suffix}"
    left = tone(rate)
    # The mean of the channels is the tone itself.
    soundfile.write(path, np.stack([1.5 * left, 0.5 * left], axis=1), rate, subtype=subtype)
    wav = read_wav(path, sample_rate=16_000)
    assert wav.dtype == np.float32 and wav.ndim == 1
    assert abs(len(wav) - 16_000) < 2_500  # mp3 pads
    assert abs(level_db(middle(wav)) - level_db(left)) < 0.3
    spectrum = np.abs(np.fft.rfft(middle(wav) * np.hanning(len(middle(wav)))))
    assert abs(np.argmax(spectrum) * 16_000 / len(middle(wav)) - 440) < 3


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_writing_and_reading_are_inverse_to_half_a_step(tmp_path, suffix):
    path = tmp_path / f"clip.{suffix}"
    wav = np.random.default_rng(0).uniform(-1, 1, 3_000).astype(np.float32)
    write_wav(path, wav)
    assert np.abs(read_wav(path) - wav).max() <= 1 / 32_768
    assert path.read_bytes() == wav_to_file(wav, suffix=f".{suffix}")


def test_writing_clips_what_16_bits_cannot_hold(tmp_path):
    write_wav(tmp_path / "loud.wav", 3 * tone(16_000))
    assert np.abs(read_wav(tmp_path / "loud.wav")).max() <= 1.0
    with pytest.raises(UserError, match="loud.mp3|'.mp3'"):
        write_wav(tmp_path / "loud.mp3", tone(16_000))


def bad_file(path: Path, fault: str) -> None:
    good = tone(16_000)
    if fault == "no such":
        return
    if fault == "empty (0 bytes)":
        path.write_bytes(b"")
    elif fault == "not readable":
        path.write_bytes(b"this is no sound" * 50)
    elif fault == "empty (0 samples)":
        soundfile.write(path, good[:0], 16_000)
    elif fault == "silent":
        soundfile.write(path, good * 1e-5, 16_000)
    elif fault == "NaN":
        soundfile.write(
            path, np.where(np.arange(len(good)) == 7, np.nan, good), 16_000, subtype="FLOAT"
        )
    elif fault == "longer than":
        soundfile.write(path, tone(16_000, seconds=2.5), 16_000)
    elif fault == "sample rate":
        soundfile.write(path, good, 100)


@pytest.mark.parametrize(
    "fault",
    ["no such", "empty (0 bytes)", "not readable", "empty (0 samples)"]
    + ["silent", "NaN", "longer than", "sample rate"],
)
def test_what_cannot_be_used_is_named_in_one_line(tmp_path, fault):
    path = tmp_path / "clip.wav"
    bad_file(path, fault)
    with pytest.raises(BadAudio) as caught:
        read_wav(path, max_seconds=2.0)
    message = str(caught.value)
    assert fault in message and str(path) in message and "\n" not in message


@pytest.mark.parametrize(("suffix", "subtype"), FORMATS)
def test_half_a_file_is_refused(tmp_path, suffix, subtype):
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 48_000), 16_000, subtype=subtype)
    read_wav(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadAudio, match="truncated|not readable"):
        read_wav(path)


def test_a_stream_without_a_length_is_read_or_named(tmp_path):
    data = bytearray(wav_to_file(tone(16_000)))
    data[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "clip.wav").write_bytes(data)
    assert len(read_wav(tmp_path / "clip.wav")) == 16_000
    data = bytearray(wav_to_file(tone(16_000), suffix=".flac"))
    data[21] &= 0xF0  # STREAMINFO's 36 bits of total samples
    data[22:26] = bytes(4)
    (tmp_path / "clip.flac").write_bytes(data)
    with pytest.raises(BadAudio, match="streamed without a length"):
        read_wav(tmp_path / "clip.flac")


def test_the_level_is_the_root_mean_square():
    assert abs(level_db(tone(16_000)) - 20 * np.log10(0.5 / np.sqrt(2))) < 1e-3
    assert level_db(np.zeros(10, np.float32)) == -120


def test_real_recordings_of_every_kind_are_read():
    folder = DATA / "speech_mixed_formats"
    if not folder.is_dir():
        pytest.skip(f"no recordings in {DATA}; set SPEECHLM_DATA")
    for line in (folder / "manifest.jsonl").read_text().splitlines():
        row = json.loads(line)
        wav = read_wav(folder / row["audio"])
        assert abs(len(wav) / 16_000 - row["dur"]) < 0.2, row["id"]
