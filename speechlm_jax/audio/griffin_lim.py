"""Turns mel frames into samples, untrained (Griffin & Lim 1984; librosa adds momentum)."""

import inspect

import librosa
import numpy as np
from jaxtyping import Float
from numpy import ndarray

from speechlm_jax.audio.mel import WHISPER, MelConfig, mel_filters, mel_to_power

HEADROOM = 0.99
_NAMES = inspect.signature(librosa.griffinlim).parameters
_SEED = "rng" if "rng" in _NAMES else "random_state"  # name from librosa 1.0 on, and before


def mel_to_wav(
    mel: Float[ndarray, "mel_frames mels"],
    config: MelConfig = WHISPER,
    *,
    seed: int = 0,
    iterations: int = 32,
) -> Float[ndarray, " samples"]:
    """Inverts `wav_to_mel` up to phase: returns `mel_frames * hop_length` samples in [-1, 1].

    The mel bands are inverted by non-negative least squares; phases start at random from `seed`.
    """
    power = np.maximum(
        librosa.util.nnls(mel_filters(config), mel_to_power(mel).T.astype(np.float32)), 0
    )
    # wav_to_mel leaves out the frame centred on the last sample; its neighbour is repeated.
    magnitude = np.pad(np.sqrt(power), ((0, 0), (0, 1)), mode="edge")
    wav = librosa.griffinlim(
        magnitude,
        n_iter=iterations,
        hop_length=config.hop_length,
        win_length=config.win_length,
        n_fft=config.n_fft,
        length=len(mel) * config.hop_length,
        **{_SEED: seed},
    )
    peak = float(np.abs(wav).max(initial=0.0))
    return (wav * min(1.0, HEADROOM / max(peak, HEADROOM))).astype(np.float32)
