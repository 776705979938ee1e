"""Question codes -> reply text and codes, in the paper's two modes.

Section 8.1 of the paper, on its SFT: the reply to speech is speech alone (`speech_only`), or text
and then its speech (`text_guided`). The reply's first id decides between them, so it is restricted
by the requested mode: to `begin_of_speech`, or to text ids.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from speechlm_jax import config as configs
from speechlm_jax.arrays import Int, ndarray
from speechlm_jax.data.formats import Writer
from speechlm_jax.nn.decode import Sampling
from speechlm_jax.nn.inference import GenerateRequest, Inference

Mode = Literal["speech_only", "text_guided"]


@dataclasses.dataclass(frozen=True)
class ChatConfig:
    """Settings of the decoding of replies.

    Attributes:
      temperature: sampling temperature of text and codes; 0 is greedy.
      max_text: maximum number of text ids after the first.
      max_codes: maximum number of codes.
    """

    temperature: float = 0.0
    max_text: int = 16
    max_codes: int = 64

    def __post_init__(self) -> None:
        configs.at_least(self, 0, "temperature", "max_text", "max_codes")


@dataclasses.dataclass(frozen=True, eq=False)
class Reply:
    """Reply of the assistant; `text` is empty in `speech_only` mode."""

    text: str
    codes: Int[ndarray, " frames"]


class Chat:
    """Assistant that replies with a fine-tuned language model."""

    def __init__(self, inference: Inference, writer: Writer, config: ChatConfig = ChatConfig()):
        self._inference = inference
        self._writer = writer
        self._config = config

    def reply(
        self,
        questions: Sequence[Sequence[int] | Int[ndarray, " _frames"]],
        *,
        mode: Mode,
        seed: int = 0,
    ) -> list[Reply]:
        """Returns a reply to each spoken question; each question is a separate dialogue."""
        writer, vocab = self._writer, self._writer.vocab
        asked = [{"codes": np.asarray(codes, np.int32)} for codes in questions]
        turns = [[{"role": "user", "segments": [segment]}] for segment in asked]
        prompts = [writer.dialogue_prompt(history) for history in turns]
        texts: list[list[int]] = [[] for _ in prompts]
        if mode == "text_guided":
            first = self._generate(prompts, vocab.allowed("text"), "begin_of_speech", 1, seed)
            begun = [[*p, *t] for p, t in zip(prompts, first, strict=True)]
            allowed = vocab.allowed("text", specials=("begin_of_speech",))
            rest = self._generate(begun, allowed, "begin_of_speech", self._config.max_text, seed)
            texts = [[*t, *more] for t, more in zip(first, rest, strict=True)]
        opened = [[*p, *t, vocab["begin_of_speech"]] for p, t in zip(prompts, texts, strict=True)]
        spoken = self._generate(
            opened,
            vocab.allowed("speech", specials=("end_of_speech",)),
            "end_of_speech",
            self._config.max_codes,
            seed,
        )
        return [
            Reply(writer.tokenizer.decode(text), vocab.ids_to_codes(np.array(ids, np.int32)))
            for text, ids in zip(texts, spoken, strict=True)
        ]

    def _generate(
        self, prompts: Sequence[list[int]], allowed: np.ndarray, stop: str, most: int, seed: int
    ) -> list[list[int]]:
        requests = [
            GenerateRequest(prompt, allowed, (self._writer.vocab[stop],), most, seed + number)
            for number, prompt in enumerate(prompts)
        ]
        return self._inference.generate(requests, sampling=Sampling(self._config.temperature))
