"""Clips and their transcripts -> training batches of a speech tokenizer."""

from collections.abc import Sequence

import numpy as np

from speechlm_jax.audio.augment import AugmentConfig, Augmenter, Varied
from speechlm_jax.audio.recordings import Features
from speechlm_jax.padding import pad_rows
from speechlm_jax.text import TextTokenizer


class TranscribedClips:
    """Chosen clips of a feature folder with their transcripts as text ids and as bytes.

    Attributes:
      lengths: number of mel frames of each chosen clip.
    """

    def __init__(
        self,
        features: Features,
        chosen: Sequence[int],
        text: TextTokenizer,
        *,
        augment: AugmentConfig | None = None,
    ):
        """Takes the clips of `features` with the indices `chosen`; `augment` varies each row."""
        lengths, rows = features.lengths, [features.rows[i] for i in chosen]
        self.lengths = [lengths[i] for i in chosen]
        self._features, self._chosen = features, chosen
        self._ids = [np.array(text.encode(row["text"]), np.int32) for row in rows]
        self._bytes = [row["text"].encode() for row in rows]
        self._augmenter = None
        if augment is not None:
            speakers = [row["speaker"] for row in rows]
            self._augmenter = Augmenter(augment, features.mel_config, self._mel, speakers)
        # The longest transcript of a row, so that every batch of a bucket has the same shapes.
        joined = augment.max_joined if augment else 1
        self._most_ids = joined * max(map(len, self._ids), default=0)
        self._most_bytes = joined * (max(map(len, self._bytes), default=0) + 1) - 1

    def collate(self, edge: int, numbers: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays that `make_stage` takes, padded to `edge` mel frames.

        `numbers` are indices of chosen clips, `rows` their row numbers in the stream (see
        `clip_batches`).
        """
        varied = [
            self._row(int(n), row=int(row), limit=edge)
            for n, row in zip(numbers, rows, strict=True)
        ]
        said = [np.concatenate([self._ids[n] for n in v.numbers]) for v in varied]
        written = [b" ".join(self._bytes[n] for n in v.numbers) for v in varied]
        mel, mel_lengths = pad_rows([v.mel for v in varied], edge, np.float32)
        text_ids, text_lengths = pad_rows(said, self._most_ids)
        spelled, byte_lengths = pad_rows(
            [np.frombuffer(line, np.uint8) for line in written], self._most_bytes
        )
        return {
            "mel": mel,
            "mel_lengths": mel_lengths,
            "text_ids": text_ids,
            "text_lengths": text_lengths,
            "bytes": spelled,
            "byte_lengths": byte_lengths,
        }

    def _mel(self, number: int) -> np.ndarray:
        return self._features.mel(self._chosen[number])

    def _row(self, number: int, *, row: int, limit: int) -> Varied:
        if self._augmenter is None:
            return Varied((number,), self._mel(number))
        return self._augmenter(number, row=row, limit=limit)
