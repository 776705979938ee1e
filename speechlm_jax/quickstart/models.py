"""A run's folder -> what was trained in it, each thing loaded when it is first asked for."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from speechlm_jax import artifacts
from speechlm_jax.arrays import Integer, ndarray
from speechlm_jax.data.formats import Writer
from speechlm_jax.data.text_norm import word_to_said
from speechlm_jax.experiment.runs import load_inference, load_reader, load_speech_decoder
from speechlm_jax.interleave.build import SpanRequest
from speechlm_jax.nn.inference import Inference
from speechlm_jax.quickstart import data
from speechlm_jax.quickstart.folders import Folders
from speechlm_jax.speech_decoder.synthesis import SpeechDecoder
from speechlm_jax.speech_tokenizer.encode_corpus import identity
from speechlm_jax.speech_tokenizer.reading import Transcriber
from speechlm_jax.text import TextTokenizer
from speechlm_jax.text_to_token.synthesize import SpeechRequest, SynthesisConfig, TextToToken
from speechlm_jax.vocab import Vocab


@dataclasses.dataclass
class Models:
    """The models of a run.

    Attributes:
      folders: where they lie.
      batch_size: requests that a language model answers at once; fewer are padded up to it.
      clip_batch_size: likewise clips of the speech tokenizer and the speech decoder.

    Raises:
      UserError: what is asked for is not trained yet, or belongs to another vocabulary.
    """

    folders: Folders
    batch_size: int = dataclasses.field(default=64, kw_only=True)
    clip_batch_size: int = dataclasses.field(default=64, kw_only=True)

    @cached_property
    def text(self) -> TextTokenizer:
        """The text vocabulary."""
        return TextTokenizer.load(self.folders.text_model)

    @cached_property
    def reader(self) -> Transcriber:
        """The speech tokenizer."""
        return self._reader[0]

    @cached_property
    def codes_identity(self) -> dict[str, Any]:
        """Whose codes the run's are: tokenizer, frame rate, codebook size."""
        return identity(*self._reader)

    @cached_property
    def vocab(self) -> Vocab:
        """The language model's vocabulary."""
        return data.make_vocab(self.text, self.codes_identity)

    @cached_property
    def voices(self) -> tuple[str, ...]:
        """Names of the voices that the text-to-token model knows."""
        path = data.vocab_path(self.folders.prepared, data.TEXT_TO_TOKEN)
        return Vocab.from_json(artifacts.read_json(path)).voices

    @cached_property
    def voiced_vocab(self) -> Vocab:
        """The text-to-token model's vocabulary: with an id for each voice."""
        return data.make_vocab(self.text, self.codes_identity, voices=self.voices)

    @property
    def writer(self) -> Writer:
        """Text and codes to the language model's ids."""
        return Writer(self.vocab, self.text)

    @cached_property
    def speech_decoder(self) -> SpeechDecoder:
        """The speech decoder."""
        tokenizer = self.codes_identity["tokenizer"]
        size = min(self.clip_batch_size, 32)
        folder = self.folders.speech_decoder
        return load_speech_decoder(folder, tokenizer=tokenizer, batch_size=size)[0]

    def make_text_to_token(self, config: SynthesisConfig) -> TextToToken:
        """The text-to-token model, to be sampled as `config` says."""
        folder = self.folders.text_to_token
        inference, _ = load_inference(
            folder, kind="text_to_token", vocab=self.voiced_vocab, batch_size=self.batch_size
        )
        return TextToToken(inference, self.voiced_vocab, self.text, config)

    def language_model(self, checkpoint: str | Path) -> Inference:
        """A language model of this run's vocabulary, from its folder or one of its steps."""
        size = self.batch_size
        return load_inference(checkpoint, kind="lm", vocab=self.vocab, batch_size=size)[0]

    # `_frames`: clips differ in length.
    def read(self, codes: Sequence[Integer[ndarray, " _frames"] | Sequence[int]]) -> list[str]:
        """What codes say, by the tokenizer's own reader."""
        clips = [np.asarray(clip, np.int32) for clip in codes]
        return [self.text.decode(ids) for ids in self.reader.codes_to_ids(clips)]

    def say(self, word: str) -> str | None:
        """What the text-to-token model is given for a word of a text.

        "" where nothing is said; None where normalising would change what is read, or where the
        model's vocabulary lacks it (what is written in bytes was never learnt).
        """
        said = word_to_said(word)
        return said if said is None or all(map(self._is_known, said.split())) else None

    def _is_known(self, word: str) -> bool:
        ids = self.text.encode(word)
        in_bytes = any("\N{REPLACEMENT CHARACTER}" in self.text.decode([id_]) for id_ in ids)
        return self.text.decode(ids) == word and not in_bytes

    def codes(self, name: str) -> Path:
        """A codes folder."""
        return self.folders.codes / name

    def fingerprint(self, folder: Path) -> str:
        """Identity of a step's output."""
        return artifacts.read_manifest(folder).fingerprint

    @cached_property
    def _reader(self) -> tuple[Transcriber, str]:
        size = self.clip_batch_size
        reader, _, fingerprint = load_reader(self.folders.tokenizer, batch_size=size)
        return reader, fingerprint


def spans_to_codes(model: TextToToken, requests: Sequence[SpanRequest]) -> list[list[int]]:
    """Codes of spans of documents; each span is sampled from a seed of its own."""
    spoken = [SpeechRequest(r.text, r.speaker, seed=r.seed) for r in requests]
    return [codes.tolist() for codes in model.text_to_codes(spoken)]
