"""Reads recordings as samples, and writes samples as 16-bit files.

This room annotates with jaxtyping and numpy themselves, not with `speechlm_jax.arrays`, which would
import JAX into workers that fork.
"""

import contextlib
import io
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr
from jaxtyping import Float
from numpy import ndarray

from speechlm_jax import artifacts
from speechlm_jax.audio.codecs import foreign_codec
from speechlm_jax.audio.mp3 import BrokenStream
from speechlm_jax.audio.whole import SoundFile, open_whole
from speechlm_jax.errors import UserError

SILENCE_DB = -70.0  # quieter than the microphone noise of any usable 16-bit recording
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 4_000, 384_000
MIN_SECONDS = 0.01
MISSING_SECONDS = 0.1  # an mp3's tag may count itself
LARGEST_SAMPLE = 16.0  # of 1.0; decoders overshoot a little, 16-bit numbers in floats do not
CANCELLED_DB = 6.0  # see mix_channels
BLOCK_SAMPLES = 1 << 18  # of each channel, decoded at a time
KEPT_SAMPLES = 1 << 24  # of several channels (64 MiB), up to which they are decoded once


class BadAudio(UserError):
    """A recording that cannot be used; the message names the file and the reason."""


def read_wav(
    path: str | Path, *, sample_rate: int = 16_000, max_seconds: float | None = None
) -> Float[ndarray, " samples"]:
    """Reads wav, flac, ogg or mp3 as float32 mono in [-1, 1] at `sample_rate` Hz.

    These are the samples of `read_blocks`. Clips longer than `max_seconds` are refused before they
    are decoded.

    Raises:
      BadAudio: as `read_blocks`, or it is too long.
    """
    blocks = read_blocks(path, sample_rate=sample_rate, max_seconds=max_seconds)
    return np.concatenate(list(blocks))


def read_blocks(
    source: str | Path | bytes,
    *,
    name: str = "",
    sample_rate: int = 16_000,
    max_seconds: float | None = None,
    raw_rate: int | None = None,
) -> Iterator[Float[ndarray, " _samples"]]:
    """Yields a recording's samples as `read_wav`, block by block, in memory for a few blocks.

    A file is read to its end, or refused (`audio.whole`). Channels are reduced to one as by
    `mix_channels`: their levels are those of the whole recording, so several are decoded twice.

    Args:
      source: a file, or the bytes of one.
      name: its name in messages; by default its path.
      raw_rate: sample rate of a file that holds 16-bit samples of one channel and no header.

    Raises:
      BadAudio: it is missing, unreadable, empty, truncated, silent, too long, or holds NaN. Some of
        this is known only at its end.
    """
    name = name or str(source)
    try:
        if not isinstance(source, bytes):
            check_file(source)
        elif not source:
            raise BadAudio(f"{name}: is empty (0 bytes); copy or record it again")
        with _opened(source, max_seconds, raw_rate) as file:
            _check_header(name, file, max_seconds)
            yield from _resampled(_mono_blocks(file, name), file.samplerate, sample_rate)
    except BrokenStream as error:
        raise BadAudio(f"{name}: {error}") from None
    except (OSError, RuntimeError, MemoryError) as error:  # libsndfile's too
        raise BadAudio(f"{name}: is not readable audio ({_reason(source, error)})") from None


def _opened(
    source: str | Path | bytes, max_seconds: float | None, raw_rate: int | None
) -> SoundFile:
    if raw_rate is None:
        return open_whole(source, max_seconds=max_seconds)
    file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    return SoundFile(
        file, format="RAW", samplerate=raw_rate, channels=1, subtype="PCM_16", endian="LITTLE"
    )


def _reason(source: str | Path | bytes, error: Exception) -> str:
    """Returns why a file cannot be read, and what to do: by its codec, if that is another."""
    found = None
    with contextlib.suppress(OSError):
        found = foreign_codec(source)
    if found:
        return (
            f"it holds {found}, which libsndfile lacks); convert it, e.g. `ffmpeg -i OLD NEW.flac`"
        )
    reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or error
    return f"{str(reason).rstrip('.')}); give wav, flac, ogg or mp3"


def _mono_blocks(file: SoundFile, name: str) -> Iterator[Float[ndarray, " _samples"]]:
    """Yields the samples at the file's own rate, each block checked and mixed; checks the whole."""
    level = _Level(name, file.channels)
    if file.channels == 1:
        for block in _decoded(file):
            level.add(block)
            yield block[:, 0]
        level.check(file)
        return
    whole = list(_decoded(file)) if file.frames * file.channels <= KEPT_SAMPLES else None
    for block in _decoded(file) if whole is None else whole:
        level.add(block)
    weights = level.check(file)
    if whole is None:
        file.seek(0)
    for block in _decoded(file) if whole is None else whole:
        yield block @ weights


def _decoded(file: SoundFile) -> Iterator[Float[ndarray, "_samples channels"]]:
    """Yields as many samples as the header counts, or as there are; never what lies after them."""
    left = file.frames
    while left > 0:
        block = file.read(min(left, BLOCK_SAMPLES), dtype="float32", always_2d=True)
        left = left - len(block) if len(block) else 0
        if len(block):
            yield block


def _resampled(
    blocks: Iterable[Float[ndarray, " _samples"]], source_rate: int, sample_rate: int
) -> Iterator[Float[ndarray, " _samples"]]:
    """Yields blocks at another rate, the same samples as if resampled at once, within [-1, 1]."""
    stream = soxr.ResampleStream(source_rate, sample_rate, 1, dtype="float32")
    is_same = source_rate == sample_rate
    for block in blocks:
        wav = block if is_same else stream.resample_chunk(np.ascontiguousarray(block))
        yield np.clip(wav, -1.0, 1.0)
    if not is_same:
        yield np.clip(stream.resample_chunk(np.zeros(0, np.float32), last=True), -1.0, 1.0)


class _Level:
    """What is known of a recording's channels from the blocks that were read."""

    def __init__(self, name: str, channels: int):
        self.samples = 0
        self._name = name
        self._products = np.zeros((channels, channels))  # sums of products of two channels

    def add(self, block: Float[ndarray, "samples channels"]) -> None:
        """Adds a block; BadAudio if it is no sound."""
        check_samples(block, name=self._name)
        self.samples += len(block)
        self._products += _products(block)

    def check(self, file: SoundFile) -> Float[ndarray, " channels"]:
        """Returns the weights that mix the channels; BadAudio if the whole is cut off or silent."""
        rate = file.samplerate
        if file.frames - self.samples > MISSING_SECONDS * rate:
            raise BadAudio(
                f"{self._name}: is truncated or damaged: {self.samples / rate:.2f} of "
                f"{file.frames / rate:.2f} s can be read; copy it again"
            )
        if not self.samples:
            raise BadAudio(f"{self._name}: is empty (no samples); record it again or drop its row")
        weights = _mix_weights(self._products / self.samples)
        power = weights @ self._products @ weights / self.samples
        if _power_db(power) < SILENCE_DB:
            raise BadAudio(
                f"{self._name}: is silent (no channel above {SILENCE_DB:.0f} dB); record it again "
                "or drop its row"
            )
        return weights.astype(np.float32)


def check_file(path: str | Path) -> None:
    """Raises BadAudio if there is no such file, it is none (a folder, a pipe), or it is empty."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a NUL in its name
        raise BadAudio(f"{path}: no such audio file; correct the path, or drop its row") from None
    except OSError as error:  # a name too long, no permission
        raise BadAudio(f"{path}: cannot be opened ({error.strerror}); correct the path") from None
    if not stat.S_ISREG(found.st_mode):
        raise BadAudio(f"{path}: is no file; give wav, flac, ogg or mp3")
    if not found.st_size:
        raise BadAudio(f"{path}: is empty (0 bytes); copy or record it again")


def mix_channels(channels: Float[ndarray, "samples channels"]) -> Float[ndarray, " samples"]:
    """Returns one channel of several.

    Channels are averaged, without those below SILENCE_DB. If they cancel each other (the mean is
    CANCELLED_DB below that of unrelated channels of their levels, as of [x, -x]), the loudest
    channel is taken instead.
    """
    weights = _mix_weights(_products(channels) / max(1, len(channels)))
    return channels @ weights.astype(channels.dtype)


def _products(channels: Float[ndarray, "samples channels"]) -> Float[ndarray, "channels channels"]:
    wide = channels.astype(np.float64)
    return wide.T @ wide


def _mix_weights(products: Float[ndarray, "channels channels"]) -> Float[ndarray, " channels"]:
    """Returns what `mix_channels` multiplies each channel by, from the means of their products."""
    levels = np.array([_power_db(power) for power in np.diag(products)])
    heard = levels >= SILENCE_DB if (levels >= SILENCE_DB).any() else np.ones(len(levels), bool)
    weights = heard / heard.sum()
    unrelated = np.diag(products)[heard].mean() / heard.sum()
    if _power_db(weights @ products @ weights) < _power_db(unrelated) - CANCELLED_DB:
        return np.eye(len(levels))[np.argmax(levels)]
    return weights


def check_samples(channels: Float[ndarray, "samples channels"], *, name: str) -> None:
    """Raises BadAudio with `name` if samples are not finite, or far too large."""
    if not np.isfinite(channels).all():
        raise BadAudio(f"{name}: holds NaN or infinite samples; export it again as 16-bit")
    largest = float(np.abs(channels).max(initial=0.0))
    if largest > LARGEST_SAMPLE:
        raise BadAudio(
            f"{name}: holds samples of {largest:.0f}, where 1 is the largest; export it as 16-bit"
        )


def write_wav(
    path: str | Path, wav: Float[ndarray, " samples"], *, sample_rate: int = 16_000
) -> None:
    """Writes samples as 16 bits, whole or not at all; the suffix (.wav, .flac) chooses the format.

    Samples outside [-1, 1] are clipped.
    """
    artifacts.write_bytes(path, wav_to_file(wav, sample_rate=sample_rate, suffix=Path(path).suffix))


def wav_to_file(
    wav: Float[ndarray, " samples"], *, sample_rate: int = 16_000, suffix: str = ".wav"
) -> bytes:
    """Returns the bytes of a 16-bit .wav or .flac file; samples outside [-1, 1] are clipped."""
    if suffix.lower() not in (".wav", ".flac"):
        raise UserError(f"audio is written as .wav or .flac, not '{suffix}'")
    file = io.BytesIO()
    kind = suffix[1:].upper()
    soundfile.write(file, samples_to_int16(wav), sample_rate, format=kind, subtype="PCM_16")
    return file.getvalue()


def samples_to_int16(wav: Float[ndarray, " samples"]) -> ndarray:
    """Turns samples in [-1, 1] into 16-bit integers, rounded and clipped."""
    return np.clip(np.rint(np.asarray(wav) * 32_768), -32_768, 32_767).astype(np.int16)


def level_db(wav: Float[ndarray, " samples"]) -> float:
    """Returns the root mean square in dB below full scale (1.0); -120 for digital silence."""
    return _power_db(float(np.mean(np.square(wav, dtype=np.float64))) if len(wav) else 0.0)


def _power_db(power: float) -> float:
    return 10 * float(np.log10(max(power, 1e-12)))


def _check_header(name: str, file: SoundFile, max_seconds: float | None) -> None:
    if not MIN_SAMPLE_RATE <= file.samplerate <= MAX_SAMPLE_RATE:
        raise BadAudio(
            f"{name}: sample rate {file.samplerate} Hz is no speech recording's; export it again"
        )
    seconds = file.frames / file.samplerate
    if seconds < MIN_SECONDS:
        raise BadAudio(f"{name}: is empty ({file.frames} samples); record it again or drop its row")
    if max_seconds is not None and seconds > max_seconds:
        raise BadAudio(f"{name}: lasts {seconds:.1f} s, longer than {max_seconds:g} s; cut it")
