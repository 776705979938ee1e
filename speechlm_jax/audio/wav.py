"""Reads recordings as samples, and writes samples as 16-bit files.

This room annotates with jaxtyping and numpy themselves, not with `speechlm_jax.arrays`, which would
import JAX into workers that fork.
"""

import io
import os
import stat
from pathlib import Path

import numpy as np
import soundfile
import soxr
from jaxtyping import Float
from numpy import ndarray

from speechlm_jax import artifacts
from speechlm_jax.audio.mp3 import BrokenStream
from speechlm_jax.audio.whole import open_whole
from speechlm_jax.errors import UserError

SILENCE_DB = -70.0  # quieter than the microphone noise of any usable 16-bit recording
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 4_000, 384_000
MIN_SECONDS = 0.01
MISSING_SECONDS = 0.1  # an mp3's tag may count itself
LARGEST_SAMPLE = 16.0  # of 1.0; decoders overshoot a little, 16-bit numbers in floats do not
CANCELLED_DB = 6.0  # see mix_channels


class BadAudio(UserError):
    """A recording that cannot be used; the message names the file and the reason."""


def read_wav(
    path: str | Path, *, sample_rate: int = 16_000, max_seconds: float | None = None
) -> Float[ndarray, " samples"]:
    """Reads wav, flac, ogg or mp3 as float32 mono in [-1, 1] at `sample_rate` Hz.

    `mix_channels` reduces channels to one. Clips longer than `max_seconds` are refused before they
    are decoded. A file is read to its end, or refused (`audio.whole`).

    Raises:
      BadAudio: the file is missing, unreadable, empty, truncated, silent, too long, or holds NaN.
    """
    try:
        check_file(path)
        with open_whole(path, max_seconds=max_seconds) as file:
            _check_header(path, file, max_seconds)
            promised, source_rate = file.frames, file.samplerate
            channels = file.read(dtype="float32", always_2d=True)
    except BrokenStream as error:
        raise BadAudio(f"{path}: {error}") from None
    except (OSError, RuntimeError, MemoryError) as error:  # libsndfile's too
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or error
        raise BadAudio(
            f"{path}: is not readable audio ({str(reason).rstrip('.')}); give wav, flac, ogg or mp3"
        ) from None
    if promised - len(channels) > MISSING_SECONDS * source_rate:
        raise BadAudio(
            f"{path}: is truncated or damaged: {len(channels) / source_rate:.2f} of "
            f"{promised / source_rate:.2f} s can be read; copy it again"
        )
    wav = check_wav(channels, name=str(path))
    if source_rate != sample_rate:
        wav = soxr.resample(wav, source_rate, sample_rate)
    return np.ascontiguousarray(np.clip(wav, -1.0, 1.0), np.float32)


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
    levels = np.array([level_db(channel) for channel in channels.T])
    heard = channels[:, levels >= SILENCE_DB] if (levels >= SILENCE_DB).any() else channels
    mean = heard.mean(axis=1)
    unrelated = level_db(heard.ravel()) - 10 * np.log10(heard.shape[1])
    if level_db(mean) < unrelated - CANCELLED_DB:
        return channels[:, np.argmax(levels)]
    return mean


def check_wav(
    channels: Float[ndarray, "samples channels"], *, name: str
) -> Float[ndarray, " samples"]:
    """Returns the channels as one; BadAudio with `name` if it is empty, not finite, or silent."""
    if not len(channels):
        raise BadAudio(f"{name}: is empty (no samples); record it again or drop its row")
    if not np.isfinite(channels).all():
        raise BadAudio(f"{name}: holds NaN or infinite samples; export it again as 16-bit")
    largest = float(np.abs(channels).max())
    if largest > LARGEST_SAMPLE:
        raise BadAudio(
            f"{name}: holds samples of {largest:.0f}, where 1 is the largest; export it as 16-bit"
        )
    wav = mix_channels(channels)
    if level_db(wav) < SILENCE_DB:
        raise BadAudio(
            f"{name}: is silent (no channel above {SILENCE_DB:.0f} dB); record it again or drop "
            "its row"
        )
    return wav


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
    power = float(np.mean(np.square(wav, dtype=np.float64))) if len(wav) else 0.0
    return 10 * float(np.log10(max(power, 1e-12)))


def _check_header(path: str | Path, file: soundfile.SoundFile, max_seconds: float | None) -> None:
    if not MIN_SAMPLE_RATE <= file.samplerate <= MAX_SAMPLE_RATE:
        raise BadAudio(
            f"{path}: sample rate {file.samplerate} Hz is no speech recording's; export it again"
        )
    seconds = file.frames / file.samplerate
    if seconds < MIN_SECONDS:
        raise BadAudio(f"{path}: is empty ({file.frames} samples); record it again or drop its row")
    if max_seconds is not None and seconds > max_seconds:
        raise BadAudio(f"{path}: lasts {seconds:.1f} s, longer than {max_seconds:g} s; cut it")
