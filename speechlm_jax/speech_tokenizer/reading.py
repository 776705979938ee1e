"""Mel frames -> codes -> text ids for many clips, by a trained speech tokenizer."""

import functools
import time
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from speechlm_jax.arrays import Array, Float, Int, PyTree, ndarray
from speechlm_jax.errors import UserError
from speechlm_jax.padding import pad_rows, run_in_batches
from speechlm_jax.speech_tokenizer.model import SpeechTokenizerConfig
from speechlm_jax.speech_tokenizer.stage import functional
from speechlm_jax.speech_tokenizer.windows import WindowConfig, WindowMel, Windows

# Mel frames of a batch: 8 x 30 s on a CPU, so that memory stays small; 32 x 30 s elsewhere.
BATCH_MEL_FRAMES = {True: 24_000, False: 96_000}


class Transcriber:
    """A trained tokenizer: mel frames to codes, and codes to text ids.

    Text ids are decoded greedily from the CTC over the codes. The attention decoder serves only as
    supervision (at small sizes it reads far worse: see docs/log.md).

    Attributes:
      weights: parameters and variables.
      busy_seconds: time that the encoder took so far.
    """

    def __init__(
        self,
        config: SpeechTokenizerConfig,
        params: PyTree,
        variables: PyTree,
        *,
        batch_size: int = 64,
    ):
        self.config = config
        self.codebook = np.asarray(variables["quantizer"]["codebook"])
        self.weights = params, variables
        self.busy_seconds = 0.0
        self._batch_size = batch_size
        model = functional(config)

        @jax.jit
        def encode(weights: tuple[PyTree, PyTree], mel: Array, lengths: Array) -> Array:
            return model.bind(*weights).mel_to_codes(mel, lengths)

        @jax.jit
        def read(weights: tuple[PyTree, PyTree], codes: Array, lengths: Array) -> Array:
            tokenizer = model.bind(*weights)
            frame_mask = jnp.arange(codes.shape[1])[None] < lengths[:, None]
            return jnp.argmax(tokenizer.ctc(tokenizer.codes_to_memory(codes, frame_mask)), axis=-1)

        self._encode = functools.partial(encode, self.weights)
        self._read = functools.partial(read, self.weights)

    def mels_to_codes(
        self, mels: Sequence[Float[ndarray, "_mel_frames mels"]]
    ) -> list[Int[ndarray, " _frames"]]:
        """Returns the codes of each clip, in order."""
        return list(self.iter_codes(WindowMel(mel, len(mel)) for mel in mels))

    def wav_to_codes(
        self, wav: Float[ndarray, " samples"], window: WindowConfig | None = None
    ) -> Int[ndarray, " frames"]:
        """Returns the codes of samples at the tokenizer's rate, of any length (see `windows`)."""
        windows = Windows.of(window or WindowConfig(), self.config)
        made = self.iter_codes(windows.mels([wav]), most=windows.mel_frames)
        return np.concatenate(list(windows.join(made)))

    def iter_codes(
        self, mels: Iterable[WindowMel], *, most: int | None = None
    ) -> Iterator[Int[ndarray, " _frames"]]:
        """Yields the codes of each clip, in order; takes clips as batches fill.

        A clip is padded to a length that it alone decides, in a batch whose rows that length alone
        decides; so nothing else has a part in its codes.

        Args:
          most: longest clip, if known: clips nearly as long are padded to it and no further.
        """
        waiting: dict[int, list[tuple[int, WindowMel]]] = {}
        made: dict[int, np.ndarray] = {}
        following = 0  # number of the next clip to be yielded
        for number, mel in enumerate(mels):
            size = self._padded_length(len(mel.frames), most)
            rows = waiting.setdefault(size, [])
            rows.append((number, mel))
            if len(rows) == self._rows(size):
                made |= self._encode_rows(waiting.pop(size), size)
            while following in made:
                yield made.pop(following)
                following += 1
        for size in sorted(waiting):
            made |= self._encode_rows(waiting[size], size)
        yield from (made[number] for number in sorted(made))

    def _padded_length(self, mel_frames: int, most: int | None) -> int:
        """Returns the length that a clip is padded to: 1, 2, 3, 4, 6, 8, 12, 16 ... of a unit."""
        unit, longest = self.config.encoder.mel_multiple, self.config.encoder.max_mel_frames
        units = max(1, -(-mel_frames // unit))
        power = 1 << (units - 1).bit_length()
        size = unit * (power * 3 // 4 if units <= power * 3 // 4 else power)
        limits = [limit for limit in (most, longest) if limit is not None and mel_frames <= limit]
        return min(size, *limits) if limits else size

    def _rows(self, size: int) -> int:
        """Returns the rows of a batch of clips of this padded length."""
        return min(
            self._batch_size, max(1, BATCH_MEL_FRAMES[jax.default_backend() == "cpu"] // size)
        )

    def _encode_rows(self, rows: list[tuple[int, WindowMel]], size: int) -> dict[int, np.ndarray]:
        """Returns the codes of one batch by the clips' numbers; an incomplete one is padded."""
        encoder = self.config.encoder
        if size < encoder.mel_frames_per_code:
            return {number: np.zeros(0, np.int32) for number, _ in rows}
        mels, _ = pad_rows([mel.frames for _, mel in rows], size, np.float32)
        lengths = np.array([mel.heard for _, mel in rows], np.int32)
        missing = self._rows(size) - len(rows)
        mels = np.pad(mels, ((0, missing), (0, 0), (0, 0)))
        began = time.monotonic()
        codes = np.asarray(self._encode(mels, np.pad(lengths, (0, missing))))
        self.busy_seconds += time.monotonic() - began
        return {
            number: row[: encoder.num_codes(mel.heard)]
            for (number, mel), row in zip(rows, codes, strict=False)
        }

    def codes_to_ids(self, codes: Sequence[Int[ndarray, " _frames"]]) -> list[list[int]]:
        """Returns the text ids of each sequence of codes.

        Raises:
          UserError: the tokenizer has no CTC heads.
        """
        if not self.config.has_ctc:
            raise UserError(
                "the speech tokenizer has no CTC heads that read its codes; `speechlm transcribe` "
                "reads them by its attention decoder"
            )
        best = run_in_batches(
            codes,
            lambda _, batch, lengths: np.asarray(self._read(batch, lengths)),
            batch_size=self._batch_size,
            multiple=32,
            by_length=True,
        )
        return [
            collapse(row[: len(clip)], blank=self.config.blank)
            for clip, row in zip(codes, best, strict=True)
        ]


def collapse(best: Int[ndarray, " frames"], *, blank: int) -> list[int]:
    """Decodes the best label of each frame by greedy CTC: merges repeats and drops blanks."""
    merged = best[np.insert(best[1:] != best[:-1], 0, True)] if len(best) else best
    return [int(label) for label in merged if label != blank]
