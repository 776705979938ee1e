"""Text and codes -> prompts in ids: how a document of either modality begins and goes on."""

from collections.abc import Sequence

import numpy as np

from speechlm_jax.arrays import Integer, ndarray
from speechlm_jax.text import TextTokenizer
from speechlm_jax.vocab import Modality, Vocab

Codes = Integer[ndarray, " frames"] | Sequence[int]


class Formats:
    """The ids of spoken and written parts, in the format of interleaved documents.

    A change of modality is marked (`begin_of_speech`, `end_of_speech`), its absence is not: speech
    that goes on stays in its span, as it does in training documents.
    """

    def __init__(self, vocab: Vocab, text_tokenizer: TextTokenizer):
        self.vocab = vocab
        self.text_tokenizer = text_tokenizer.for_vocab(vocab)

    def text(self, text: str) -> list[int]:
        """Ids of written words."""
        return [int(i) for i in self.text_tokenizer.encode(text)]

    def speech(self, codes: Codes) -> list[int]:
        """Ids of codes, without marks."""
        return self.vocab.codes_to_ids(np.asarray(codes, np.int64)).tolist()

    def prompt(self, part: str | Codes, *, then: Modality) -> list[int]:
        """A written (str) or spoken (codes) part, and the mark that the next modality needs."""
        if isinstance(part, str):
            opening = [self.vocab["begin_of_speech"]] if then == "speech" else []
            return [*self.text(part), *opening]
        closing = [self.vocab["end_of_speech"]] if then == "text" else []
        return [self.vocab["begin_of_speech"], *self.speech(part), *closing]

    def continuation(self, part: str | Codes) -> list[int]:
        """What follows such a prompt."""
        return self.text(part) if isinstance(part, str) else self.speech(part)

    def ids_to_text(self, ids: Sequence[int]) -> str:
        """Text of those ids that are text."""
        every = np.asarray(ids, np.int64)
        return self.text_tokenizer.decode(every[self.vocab.is_text(every)].tolist())
