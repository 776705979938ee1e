"""Mel spectrograms and WAV files -> data embedded in a page."""

import base64
import io
import wave
from pathlib import Path

import numpy as np
from matplotlib import image

from speechlm_jax.arrays import Float, ndarray

WAVE_BARS = 64


def mel_to_png(mel: Float[ndarray, "mel_frames mels"], *, low: float, high: float) -> str:
    """Returns a spectrogram as a PNG data address: time to the right, frequency up, `low` dark."""
    file = io.BytesIO()
    picture = np.asarray(mel, np.float32).T
    image.imsave(file, picture, vmin=low, vmax=high, cmap="magma", origin="lower", format="png")
    return _address("image/png", file.getvalue())


def wav_to_address(path: Path) -> str:
    """Returns a WAV file as a data address."""
    return _address("audio/wav", Path(path).read_bytes())


def wav_to_bars(path: Path) -> list[float] | None:
    """Returns peaks of 16-bit PCM in WAVE_BARS equal parts, 0 to 1; None for other kinds of WAV."""
    try:
        with wave.open(str(path), "rb") as file:
            if file.getsampwidth() != 2:
                return None
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    except (wave.Error, EOFError):
        return None
    parts = np.array_split(np.abs(samples.astype(np.float32)) / 32768, WAVE_BARS)
    return [float(part.max()) if part.size else 0.0 for part in parts]


def _address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
