"""Clips and their codes -> training batches of a speech decoder."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from speechlm_jax.audio.recordings import Features
from speechlm_jax.errors import UserError
from speechlm_jax.padding import pad_rows

SAMPLED_CLIPS = 500  # clips from which the mean and standard deviation are computed


class CodedClips:
    """Chosen clips of a feature folder with their codes; a clip without codes is left out.

    So is a last code whose mel frames the clip does not all have (`EncoderConfig.tail`).

    Attributes:
      lengths: number of mel frames of each clip that its codes cover.
      voices: names of the clips' speakers, in the order of their voice numbers, which start at 1.
    """

    def __init__(
        self,
        features: Features,
        chosen: Sequence[int],
        codes: Mapping[str, Mapping[str, Any]],
        *,
        mel_frames_per_code: int,
    ):
        """Takes the clips of `features` with the indices `chosen`.

        Args:
          codes: rows with "codes", by the clips' ids.

        Raises:
          UserError: a chosen clip has no row in `codes`.
        """
        self._features, self._per_code = features, mel_frames_per_code
        frames = features.lengths
        found = {
            i: _codes_of(features.rows[i]["id"], codes)[: frames[i] // mel_frames_per_code]
            for i in chosen
        }
        self._codes = [np.array(row, np.int32) for row in found.values() if row]
        self._chosen = [i for i, row in found.items() if row]
        speakers = [features.rows[i]["speaker"] for i in self._chosen]
        self.voices = sorted({*speakers})
        self._voices = [1 + self.voices.index(speaker) for speaker in speakers]
        self.lengths = [len(row) * mel_frames_per_code for row in self._codes]

    def mel_moments(self) -> tuple[float, float]:
        """Returns mean and standard deviation of the first `SAMPLED_CLIPS` clips' mel frames."""
        first = self._chosen[:SAMPLED_CLIPS]
        sample = np.concatenate([self._features.mel(i) for i in first])
        return float(sample.mean()), float(sample.std())

    def collate(self, edge: int, numbers: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays that `make_stage` takes, padded to `edge` mel frames.

        `numbers` are indices of the clips; `rows` is not used (see `clip_batches`).
        """
        codes, lengths = pad_rows([self._codes[n] for n in numbers], edge // self._per_code)
        mels = [self._features.mel(self._chosen[n])[: self.lengths[n]] for n in numbers]
        return {
            "mel": pad_rows(mels, edge, np.float32)[0],
            "codes": codes,
            "code_lengths": lengths,
            "voices": np.array([self._voices[n] for n in numbers], np.int32),
        }


def _codes_of(clip: str, codes: Mapping[str, Mapping[str, Any]]) -> Sequence[int]:
    if clip not in codes:
        raise UserError(f"data.codes: has no clip '{clip}'; give the codes of all chosen clips")
    return codes[clip]["codes"]
