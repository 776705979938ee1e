"""Any recording -> samples, and samples -> a 16-bit file.

This room annotates with jaxtyping and numpy themselves, not with `speechlm_jax.arrays`: that would
import JAX into workers that fork.
"""

import io
import os
from pathlib import Path

import numpy as np
import soundfile
import soxr
from jaxtyping import Float
from numpy import ndarray

from speechlm_jax import artifacts
from speechlm_jax.errors import UserError

SILENCE_DB = -70.0  # quieter than any microphone's own noise at 16 bits in a usable recording
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 4_000, 384_000
MIN_SECONDS = 0.01
MISSING_SECONDS = 0.1  # an mp3's header may count its padding
UNKNOWN_FRAMES = 1 << 40  # libsndfile gives a FLAC stream of unknown length the largest number
OGG_PAGE_BYTES = 65_307  # the largest page (RFC 3533)


class BadAudio(UserError):
    """A recording that cannot be used; the message names the file and says why."""


def read_wav(
    path: str | Path, *, sample_rate: int = 16_000, max_seconds: float | None = None
) -> Float[ndarray, " samples"]:
    """Reads wav, flac, ogg or mp3 as float32 mono in [-1, 1] at `sample_rate` Hz.

    Channels are averaged. Clips longer than `max_seconds` are refused before they are decoded.

    Raises:
      BadAudio: the file is missing, unreadable, empty, truncated, silent, too long, or holds NaN.
    """
    try:
        with soundfile.SoundFile(str(path)) as file:
            _check_header(path, file, max_seconds)
            promised = file.frames
            wav = file.read(dtype="float32", always_2d=True)
            source_rate = file.samplerate
    except (soundfile.LibsndfileError, OSError, RuntimeError, MemoryError) as error:
        raise BadAudio(f"{path}: {_unreadable(path, error)}") from None
    missing = promised - len(wav)
    if missing > MISSING_SECONDS * source_rate or _is_cut_wav(path) or _is_cut_ogg(path):
        raise BadAudio(f"{path}: is truncated (the file ends too early); copy it again")
    wav = wav.mean(axis=1)
    check_wav(wav, name=str(path))
    if source_rate != sample_rate:
        wav = soxr.resample(wav, source_rate, sample_rate)
    return np.ascontiguousarray(np.clip(wav, -1.0, 1.0), np.float32)


def check_wav(wav: Float[ndarray, " samples"], *, name: str) -> None:
    """BadAudio, naming `name`, if the samples are empty, not finite, or silent."""
    if not len(wav):
        raise BadAudio(f"{name}: is empty (no samples); record it again or drop its row")
    if not np.isfinite(wav).all():
        raise BadAudio(f"{name}: holds NaN or infinite samples; export it again as 16-bit")
    if level_db(wav) < SILENCE_DB:
        raise BadAudio(
            f"{name}: is silent (below {SILENCE_DB:.0f} dB); record it again or drop its row"
        )


def write_wav(
    path: str | Path, wav: Float[ndarray, " samples"], *, sample_rate: int = 16_000
) -> None:
    """Writes samples in [-1, 1] as 16 bits; the suffix (.wav, .flac) chooses the format.

    Whole or not at all; samples outside [-1, 1] are clipped.
    """
    artifacts.write_bytes(path, wav_to_file(wav, sample_rate=sample_rate, suffix=Path(path).suffix))


def wav_to_file(
    wav: Float[ndarray, " samples"], *, sample_rate: int = 16_000, suffix: str = ".wav"
) -> bytes:
    """The bytes of a 16-bit .wav or .flac file; samples outside [-1, 1] are clipped."""
    if suffix.lower() not in (".wav", ".flac"):
        raise UserError(f"audio is written as .wav or .flac, not '{suffix}'")
    file = io.BytesIO()
    kind = suffix[1:].upper()
    soundfile.write(file, samples_to_int16(wav), sample_rate, format=kind, subtype="PCM_16")
    return file.getvalue()


def samples_to_int16(wav: Float[ndarray, " samples"]) -> ndarray:
    """Samples in [-1, 1] to 16-bit integers, rounded and clipped."""
    return np.clip(np.rint(np.asarray(wav) * 32_768), -32_768, 32_767).astype(np.int16)


def level_db(wav: Float[ndarray, " samples"]) -> float:
    """The root mean square in dB below full scale (1.0); -120 for digital silence."""
    power = float(np.mean(np.square(wav, dtype=np.float64))) if len(wav) else 0.0
    return 10 * float(np.log10(max(power, 1e-12)))


def _check_header(path: str | Path, file: soundfile.SoundFile, max_seconds: float | None) -> None:
    if not MIN_SAMPLE_RATE <= file.samplerate <= MAX_SAMPLE_RATE:
        raise BadAudio(
            f"{path}: sample rate {file.samplerate} Hz is no speech recording's; export it again"
        )
    if file.frames >= UNKNOWN_FRAMES:
        raise BadAudio(f"{path}: was streamed without a length; write it again to a file")
    seconds = file.frames / file.samplerate
    if seconds < MIN_SECONDS:
        raise BadAudio(f"{path}: is empty ({file.frames} samples); record it again or drop its row")
    if max_seconds is not None and seconds > max_seconds:
        raise BadAudio(f"{path}: lasts {seconds:.1f} s, longer than {max_seconds:g} s; cut it")


def _unreadable(path: str | Path, error: Exception) -> str:
    if not os.path.exists(path):
        return "no such audio file; correct the path, or drop its row"
    if os.path.getsize(path) == 0:
        return "is empty (0 bytes); copy or record it again"
    reason = str(error).split(": ", 1)[-1].strip().rstrip(".")
    return f"is not readable audio ({reason}); give wav, flac, ogg or mp3"


def _is_cut_wav(path: str | Path) -> bool:
    """Whether a RIFF file is shorter than its data chunk says: libsndfile passes that over.

    A streamed file whose size was never known (0 or 0xFFFFFFFF) is whole.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if file.read(4) != b"RIFF":
            return False
        file.seek(12)
        while len(head := file.read(8)) == 8:
            length = int.from_bytes(head[4:], "little")
            if head[:4] == b"data":
                return 0 < length < 0xFFFF_F000 and file.tell() + length > size
            file.seek(length + length % 2, os.SEEK_CUR)
    return False


def _is_cut_ogg(path: str | Path) -> bool:
    """Whether the last page of an Ogg file is not the one that ends the stream (RFC 3533, 6)."""
    with open(path, "rb") as file:
        if file.read(4) != b"OggS":
            return False
        file.seek(max(0, os.path.getsize(path) - OGG_PAGE_BYTES))
        tail = file.read()
    last = tail.rfind(b"OggS")
    return last < 0 or last + 5 >= len(tail) or not tail[last + 5] & 0x04
