"""One quickstart run: its folders, its numbers, and what its steps have made so far."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from speechlm_jax import artifacts
from speechlm_jax.arrays import Integer, ndarray
from speechlm_jax.audio.recordings import Features
from speechlm_jax.data.formats import Writer
from speechlm_jax.experiment import load_inference, load_reader
from speechlm_jax.quickstart import corpora, data
from speechlm_jax.quickstart.folders import Folders
from speechlm_jax.quickstart.sizes import QuickstartConfig
from speechlm_jax.quickstart.spoken import Spoken
from speechlm_jax.speech_tokenizer.reading import Reader
from speechlm_jax.text import TextTokenizer
from speechlm_jax.text_to_token.synthesize import TextToToken
from speechlm_jax.vocab import Vocab
from speechlm_jax.world.world import World

ARMS = ("interleaved", "baseline")


@dataclasses.dataclass
class Quickstart:
    """One run: its folders, its numbers, and what its steps made so far."""

    folders: Folders
    config: QuickstartConfig
    world: World
    seed: int

    @cached_property
    def text(self) -> TextTokenizer:
        """The text vocabulary: the world's words."""
        return TextTokenizer.load(self.folders.text_model)

    @cached_property
    def features(self) -> Features:
        """Mel frames of every clip."""
        return Features(self.folders.features)

    @cached_property
    def reader(self) -> Reader:
        """The trained speech tokenizer."""
        return load_reader(self.folders.tokenizer)[0]

    @cached_property
    def voices(self) -> tuple[str, ...]:
        """Names of the training voices."""
        rows = self.features.rows
        return tuple(sorted({row["speaker"] for row in rows if row["split"] == corpora.TRAIN}))

    @cached_property
    def vocab(self) -> Vocab:
        """The language model's vocabulary."""
        return data.make_vocab(self.text, self.codes("strings"))

    @cached_property
    def voiced_vocab(self) -> Vocab:
        """The text-to-token model's vocabulary: with an id for each training voice."""
        return data.make_vocab(self.text, self.codes("strings"), voices=self.voices)

    @property
    def writer(self) -> Writer:
        """Text and codes to the language model's ids."""
        return Writer(self.vocab, self.text)

    @cached_property
    def text_to_token(self) -> TextToToken:
        """The trained text-to-token model."""
        inference, _ = load_inference(self.folders.text_to_token)
        return TextToToken(inference, self.voiced_vocab, self.text, self.config.synthesis)

    @cached_property
    def spoken(self) -> Spoken:
        """The evaluation clips as codes."""
        return Spoken(self.codes("evaluation"), self.world)

    def codes(self, name: str) -> Path:
        """A codes folder."""
        return self.folders.codes / name

    def read(self, codes: Sequence[Integer[ndarray, " frames"] | Sequence[int]]) -> list[str]:
        """What codes say, by the tokenizer's own reader."""
        clips = [np.asarray(clip, np.int32) for clip in codes]
        return [self.text.decode(ids) for ids in self.reader.codes_to_ids(clips)]

    def fingerprint(self, folder: Path) -> str:
        """Identity of a step's output."""
        return artifacts.read_manifest(folder).fingerprint
