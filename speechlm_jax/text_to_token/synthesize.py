"""Text -> codes in batches; rejects codes of an unlikely length."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from speechlm_jax import config as configs
from speechlm_jax.arrays import Int, ndarray
from speechlm_jax.data.formats import Writer
from speechlm_jax.id_set import IdSet
from speechlm_jax.nn.inference import GenerateRequest, Inference
from speechlm_jax.nn.sampling import Sampling
from speechlm_jax.text import TextTokenizer
from speechlm_jax.vocab import Vocab


@dataclasses.dataclass(frozen=True)
class SynthesisConfig:
    """Settings of the sampling of speech.

    Attributes:
      temperature, top_p: sampling of the next code.
      min_frames_per_word, max_frames_per_word: bounds outside of which speech is rejected.
    """

    temperature: float = 0.5
    top_p: float = 1.0
    min_frames_per_word: float = 1.0
    max_frames_per_word: float = 9.0

    def __post_init__(self) -> None:
        configs.at_least(self, 0, "temperature", "min_frames_per_word")
        configs.above_0(self, "top_p", most=1)
        configs.at_least(self, self.min_frames_per_word, "max_frames_per_word")


@dataclasses.dataclass(frozen=True)
class SpeechRequest:
    """A text to speak in the named training voice; the same seed gives the same codes."""

    text: str
    voice: str
    seed: int


def sayable(vocab: Vocab) -> IdSet:
    """Returns the ids that a text-to-token model says: codes and the end of speech."""
    return vocab.allowed("speech", specials=("end_of_speech",))


class TextToToken:
    """A trained text-to-token model."""

    def __init__(
        self,
        inference: Inference,
        vocab: Vocab,
        text_tokenizer: TextTokenizer,
        config: SynthesisConfig = SynthesisConfig(),
    ):
        self._inference = inference
        self._vocab = vocab
        self._writer = Writer(vocab, text_tokenizer)
        self._config = config
        self._allowed = sayable(vocab)

    def text_to_codes(self, requests: Sequence[SpeechRequest]) -> list[Int[ndarray, " _frames"]]:
        """Returns the codes of each text; empty if they did not end or have an unlikely length."""
        vocab, bound = self._vocab, self._config.max_frames_per_word
        words = [max(1, len(request.text.split())) for request in requests]
        replies = self._inference.generate(
            [
                GenerateRequest(
                    prompt=self._writer.voiced_tts_prompt(request.text, request.voice),
                    allowed=self._allowed,
                    stops=(vocab["end_of_speech"],),
                    max_new=math.floor(bound * number) + 1,
                    seed=request.seed,
                )
                for request, number in zip(requests, words, strict=True)
            ],
            sampling=Sampling(self._config.temperature, self._config.top_p),
        )
        codes = [vocab.ids_to_codes(np.array(reply, np.int32)) for reply in replies]
        return [
            row if self._likely(len(row), number) else row[:0]
            for row, number in zip(codes, words, strict=True)
        ]

    def _likely(self, frames: int, words: int) -> bool:
        config = self._config
        return config.min_frames_per_word * words <= frames <= config.max_frames_per_word * words
