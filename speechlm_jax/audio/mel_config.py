"""Settings of mel frames: numbers alone, without the code that computes frames."""

import dataclasses
from typing import Literal

from speechlm_jax import config as configs
from speechlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class MelConfig:
    """Settings of the conversion from samples to mel frames.

    Attributes:
      sample_rate: samples per second, in Hz.
      n_fft: samples of one Fourier transform.
      win_length: samples of the Hann window inside it.
      hop_length: samples between frames.
      num_mels: mel bins, on Slaney's scale with area normalisation.
      floor: smallest value. `clip`: 8 decades below the clip's maximum (Whisper; no stream can know
        it); `running`: 8 decades below the maximum so far; `fixed`: one value.
      f_min, f_max: edges of the mel bands in Hz; f_max None is half the sample rate.
      level: `kept`: as recorded (Whisper); `peak`: the maximum (of the clip or so far, as `floor`
        says) becomes that of speech at full scale: frames do not tell how loud a recording is.
    """

    sample_rate: int = 16_000
    n_fft: int = 400
    win_length: int = 400
    hop_length: int = 160
    num_mels: int = 80
    floor: Literal["clip", "fixed", "running"] = "clip"
    f_min: float = 0.0
    f_max: float | None = None
    level: Literal["kept", "peak"] = configs.added("kept")

    def __post_init__(self) -> None:
        sizes = ("sample_rate", "n_fft", "win_length", "hop_length", "num_mels")
        configs.at_least(self, 1, *sizes)
        configs.at_least(self, 0, "f_min")
        if self.win_length > self.n_fft:
            raise UserError(f"win_length: {self.win_length} exceeds n_fft, {self.n_fft}")
        if self.level == "peak" and self.floor == "fixed":
            raise UserError("level: peak needs a maximum; give floor clip or running")
        most = self.sample_rate / 2 if self.f_max is None else self.f_max
        if not self.f_min < most <= self.sample_rate / 2:
            raise UserError(
                f"f_max: {most}; give more than f_min, {self.f_min}, up to half the sample rate"
            )

    @property
    def mel_rate_hz(self) -> float:
        """Mel frames per second."""
        return self.sample_rate / self.hop_length


WHISPER = MelConfig()
