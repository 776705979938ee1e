"""Question codes -> reply text and codes, in the paper's two modes.

Section 8.1 of the paper, on its SFT: the reply to speech is speech alone (`speech_only`), or text
and then its speech (`text_guided`). The reply's first id decides between them, so it is restricted
by the requested mode: to `begin_of_speech`, or to text ids.
"""

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Literal

import numpy as np

from speechlm_jax import config as configs
from speechlm_jax.arrays import Int, ndarray
from speechlm_jax.data.formats import Writer
from speechlm_jax.id_set import IdSet
from speechlm_jax.nn.inference import GenerateRequest, Inference
from speechlm_jax.nn.sampling import Sampling

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
        asked = [{"codes": np.asarray(codes, np.int32)} for codes in questions]
        turns = [[{"role": "user", "segments": [segment]}] for segment in asked]
        prompts = [self._writer.dialogue_prompt(history) for history in turns]
        size = self._inference.slots
        return [
            reply
            for first in range(0, len(prompts), size)
            for reply in self._answer(prompts[first : first + size], mode, seed + first)
        ]

    def _answer(self, prompts: list[list[int]], mode: Mode, seed: int) -> list[Reply]:
        """Answers as many dialogues as there are slots: each goes on in its own."""
        writer, vocab = self._writer, self._writer.vocab
        begin, end = vocab["begin_of_speech"], vocab["end_of_speech"]
        with ExitStack() as closing:
            sessions = [closing.enter_context(self._inference.session()) for _ in prompts]

            def go_on(added: Sequence[list[int]], allowed: IdSet, stop: int, most: int) -> list:
                requests = [
                    GenerateRequest(ids, allowed, (stop,), most, seed + number, session=session)
                    for number, (ids, session) in enumerate(zip(added, sessions, strict=True))
                ]
                sampling = Sampling(self._config.temperature)
                return self._inference.generate(requests, sampling=sampling)

            texts: list[list[int]] = [[] for _ in prompts]
            if mode == "text_guided":
                first = go_on(prompts, vocab.allowed("text"), begin, 1)
                allowed = vocab.allowed("text", specials=("begin_of_speech",))
                rest = go_on([[] for _ in prompts], allowed, begin, self._config.max_text)
                texts = [[*t, *more] for t, more in zip(first, rest, strict=True)]
                prompts = [[] for _ in prompts]
            codes = vocab.allowed("speech", specials=("end_of_speech",))
            spoken = go_on([[*p, begin] for p in prompts], codes, end, self._config.max_codes)
        return [
            Reply(writer.tokenizer.decode(text), vocab.ids_to_codes(np.array(ids, np.int32)))
            for text, ids in zip(texts, spoken, strict=True)
        ]
