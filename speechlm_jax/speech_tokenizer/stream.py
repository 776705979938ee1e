"""Samples as they come -> codes as soon as they can be known, equal to those of the whole file.

A stream follows the rule of `windows`: within a window it encodes block by block with a cache, so
that nothing is encoded twice; a new window begins anew, with its context.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np

from speechlm_jax.arrays import Array, Float, Int, PyTree, ndarray
from speechlm_jax.audio.mel_stream import MelStream
from speechlm_jax.speech_tokenizer.encoder import Carry
from speechlm_jax.speech_tokenizer.model import SpeechTokenizerConfig
from speechlm_jax.speech_tokenizer.reading import Transcriber
from speechlm_jax.speech_tokenizer.stage import functional
from speechlm_jax.speech_tokenizer.windows import WindowConfig, Windows


class Stream:
    """One stream of samples at the tokenizer's rate.

    Its state is the cache of one window, the context of the next, and less than a block of frames.

    Attributes:
      mel_frames_encoded: mel frames that the encoder has read so far.
    """

    def __init__(self, tokenizer: Transcriber, window: WindowConfig | None = None):
        """Starts a stream that cuts windows as `window` says (default: as in the release).

        A tokenizer whose floor follows the loudest frame of a clip gets one that follows the
        loudest so far: codes then differ from those of the whole clip until that frame is heard.
        """
        self._sizes = Windows.of(window or WindowConfig(), tokenizer.config)
        programs = _programs(tokenizer.config, self._sizes.mel_frames)
        self._start, self._step = (functools.partial(f, tokenizer.weights) for f in programs)
        mel, encoder = tokenizer.config.mel, tokenizer.config.encoder
        self._mel_config = dataclasses.replace(mel, floor="running") if mel.floor == "clip" else mel
        self._block = np.zeros((encoder.block_mel_frames, encoder.num_mels), np.float32)
        self._context = np.zeros(self._sizes.context_samples, np.float32)
        self._is_first = True
        self.mel_frames_encoded = 0
        self._begin()

    def push(self, samples: Float[ndarray, " samples"]) -> Int[ndarray, " frames"]:
        """Takes the next samples, any number; returns the codes that they complete.

        A code comes with the block that it lies in, and that with the last sample that it needs.
        """
        samples = np.asarray(samples, np.float32)
        made: list[np.ndarray] = []
        while len(samples):
            if not self._heard and not self._is_first and len(self._context):
                made += self._take(self._context.copy())
            room = self._sizes.samples - self._heard
            made += self._take(samples[:room])
            samples = samples[room:]
            if self._heard == self._sizes.samples:
                made += self._end()
        return _joined(made)

    def finish(self) -> Int[ndarray, " frames"]:
        """Ends the stream and returns its last codes; the next `push` starts another stream."""
        made = self._end() if self._heard else []
        self._is_first = True
        self._begin()
        return _joined(made)

    @property
    def state_bytes(self) -> int:
        """Bytes of the arrays that the stream holds between two calls of the encoder."""
        carry = sum(leaf.nbytes for leaf in jax.tree.leaves(self._carry))
        return carry + self._block.nbytes + self._context.nbytes

    def _begin(self) -> None:
        """Starts a window."""
        self._mel = MelStream(self._mel_config)
        self._carry = self._start()
        self._heard = 0  # samples of this window
        self._encoded = 0  # mel frames of this window
        self._end_frame: int | None = None  # of what is heard, once the window has ended
        self._waiting = 0  # mel frames in the block
        self._drop = 0 if self._is_first else self._sizes.context_codes

    def _take(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        """Takes samples of this window; yields the codes of the blocks that they fill."""
        self._keep_context(samples)
        self._heard += len(samples)
        yield from self._fill(self._mel.push(samples))

    def _keep_context(self, samples: np.ndarray) -> None:
        """Keeps those of the samples that the next window begins with."""
        first = self._heard - (self._sizes.samples - self._sizes.context_samples)
        late = samples[max(0, -first) :]
        start = max(0, first)
        self._context[start : start + len(late)] = late

    def _fill(self, frames: np.ndarray) -> Iterator[np.ndarray]:
        size = len(self._block)
        while len(frames):
            room = size - self._waiting
            part, frames = frames[:room], frames[room:]
            self._block[self._waiting : self._waiting + len(part)] = part
            self._waiting += len(part)
            if self._waiting == size:
                yield self._encode()

    def _end(self) -> list[np.ndarray]:
        """Ends the window; returns its last codes."""
        self._end_frame = self._sizes.heard(self._heard)
        rest = [self._mel.push(self._sizes.silence(self._heard)), self._mel.finish()]
        made = list(self._fill(np.concatenate(rest)))
        if self._sizes.num_codes(self._waiting):
            made.append(self._encode())
        self._is_first = False
        self._begin()
        return made

    def _encode(self) -> np.ndarray:
        """Returns the codes of the block's frames, without those of the context."""
        self._block[self._waiting :] = 0
        frames, self._waiting = self._waiting, 0
        if self._end_frame is not None:
            frames = min(frames, self._end_frame - self._encoded)
        self._encoded += frames
        self._carry, codes = self._step(self._carry, self._block[None], np.int32([frames]))
        self.mel_frames_encoded += frames
        made = np.asarray(codes)[0, : self._sizes.num_codes(frames)]
        kept = made[self._drop :]
        self._drop = max(0, self._drop - len(made))
        return kept


def _joined(made: list[np.ndarray]) -> Int[ndarray, " frames"]:
    return np.concatenate([np.zeros(0, np.int32), *made])


@functools.lru_cache(maxsize=8)
def _programs(config: SpeechTokenizerConfig, mel_frames: int) -> tuple[Callable, Callable]:
    """Returns the programs of streams: start -> carry; (weights, carry, block, frames) -> both."""
    model = functional(config)

    @jax.jit
    def start(weights: tuple[PyTree, PyTree]) -> Carry:
        return model.bind(*weights).encoder.start(batch=1, max_mel_frames=mel_frames)

    @functools.partial(jax.jit, donate_argnums=1)
    def step(
        weights: tuple[PyTree, PyTree], carry: Carry, mel: Array, frames: Array
    ) -> tuple[Carry, Array]:
        return model.bind(*weights).step(carry, mel, frames)

    return start, step
