"""Any recording becomes float32 mono at the wanted rate, or one line that says why not."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechlm_jax.audio import wav as wav_module
from speechlm_jax.audio.wav import (
    BadAudio,
    level_db,
    mix_channels,
    read_wav,
    wav_to_file,
    write_wav,
)
from speechlm_jax.errors import UserError

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
    # Their mean is the tone itself.
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


def test_channels_are_averaged_unless_they_cancel_or_are_dead():
    speech, noise = tone(16_000), tone(16_000, hz=900.0)
    silence = np.zeros_like(speech)

    def mixed(*channels: np.ndarray) -> np.ndarray:
        return mix_channels(np.stack(channels, axis=1))

    np.testing.assert_allclose(mixed(speech, noise), (speech + noise) / 2, atol=1e-6)
    np.testing.assert_allclose(mixed(speech, 0.4 * speech), 0.7 * speech, atol=1e-6)
    for gain in (-0.99, -0.95, -0.5):  # cancelled: the loudest
        assert np.array_equal(mixed(speech, gain * speech), speech)
        assert np.array_equal(mixed(gain * speech, speech, silence), speech)
    for dead in ((speech, silence), (silence, silence, silence, speech)):
        assert np.array_equal(mixed(*dead), speech)
    assert np.array_equal(mixed(speech, -speech, speech, -speech), speech)
    np.testing.assert_allclose(  # unrelated channels are no cancellation, however many
        level_db(mixed(*np.random.default_rng(0).normal(0, 0.1, (8, 16_000)).astype(np.float32))),
        -20 - 10 * np.log10(8),
        atol=0.2,
    )


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_silence_in_every_channel_is_said_to_be_that(tmp_path, channels):
    soundfile.write(tmp_path / "clip.wav", np.zeros((16_000, channels)), 16_000)
    with pytest.raises(BadAudio, match="silent .no channel above -70 dB."):
        read_wav(tmp_path / "clip.wav")


def test_16_bit_numbers_in_floats_are_refused_and_an_overshoot_is_clipped(tmp_path):
    for gain, usable in ((2.5, True), (32_768, False)):
        soundfile.write(tmp_path / "clip.wav", gain * tone(16_000), 16_000, subtype="FLOAT")
        if usable:
            assert read_wav(tmp_path / "clip.wav").max() == 1.0
        else:
            with pytest.raises(BadAudio, match="samples of 16384, where 1 is the largest"):
                read_wav(tmp_path / "clip.wav")


@pytest.mark.parametrize("rate", [1, 10_000_000])
def test_a_rate_of_no_recording_is_refused(tmp_path, rate):
    soundfile.write(tmp_path / "clip.wav", tone(16_000), rate)
    with pytest.raises(BadAudio, match=f"sample rate {rate} Hz is no speech recording's"):
        read_wav(tmp_path / "clip.wav")


def test_the_level_is_the_root_mean_square():
    assert abs(level_db(tone(16_000)) - 20 * np.log10(0.5 / np.sqrt(2))) < 1e-3
    assert level_db(np.zeros(10, np.float32)) == -120


def test_real_recordings_of_every_kind_are_read(real_data):
    folder = real_data("speech_mixed_formats")
    for line in (folder / "manifest.jsonl").read_text().splitlines():
        row = json.loads(line)
        wav = read_wav(folder / row["audio"])
        assert abs(len(wav) / 16_000 - row["dur"]) < 0.2, row["id"]


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("channels", [1, 3])
def test_blocks_are_the_whole_whatever_their_size(tmp_path, monkeypatch, suffix, channels):
    path = tmp_path / f"clip.{suffix}"
    loud = [1.0, 0.8, 0.00001][:channels] if suffix != "mp3" else [1.0, 0.8][:channels]
    noise = np.random.default_rng(0).normal(0, 0.1, (30_000, 1)) * loud
    soundfile.write(path, noise, 22_050)
    whole = read_wav(path)
    for size, kept in ((1 << 18, 0), (1_000, 0), (777, 1 << 24)):
        monkeypatch.setattr(wav_module, "BLOCK_SAMPLES", size)
        monkeypatch.setattr(wav_module, "KEPT_SAMPLES", kept)
        for source in (path, path.read_bytes()):
            blocks = list(wav_module.read_blocks(source, name="clip"))
            np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-6)
        assert len(blocks) > 1


def test_what_is_wrong_in_a_later_block_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(wav_module, "BLOCK_SAMPLES", 1_000)
    wav = np.full((9_000, 2), 0.1, np.float32)
    wav[8_500, 1] = np.nan
    for channels in (1, 2):
        soundfile.write(tmp_path / "a.wav", wav[:, -channels:], 16_000, subtype="FLOAT")
        with pytest.raises(BadAudio, match="NaN"):
            list(wav_module.read_blocks(tmp_path / "a.wav"))


def test_bytes_without_a_header_are_read_at_the_rate_that_is_given():
    samples = np.arange(-8_000, 8_000, dtype="<i2")
    (wav,) = wav_module.read_blocks(samples.tobytes(), name="-", raw_rate=16_000)
    np.testing.assert_array_equal(wav, samples / np.float32(32_768))
    with pytest.raises(BadAudio, match="-: is empty"):
        list(wav_module.read_blocks(b"", name="-", raw_rate=16_000))
