"""A bundle's folder -> its models, each loaded when it is first used."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from jax.sharding import Mesh

from speechlm_jax import artifacts
from speechlm_jax.arrays import Integer, ndarray
from speechlm_jax.audio.mel_config import MelConfig
from speechlm_jax.bundle.contents import Contents, Part, PartName, beside, require_parts
from speechlm_jax.codes import CodesIdentity
from speechlm_jax.data.formats import Writer
from speechlm_jax.data.text_norm import word_to_said
from speechlm_jax.errors import UserError
from speechlm_jax.experiment import runs
from speechlm_jax.experiment.stages import VOICES
from speechlm_jax.interleave.build import SpanRequest
from speechlm_jax.nn.inference import Inference
from speechlm_jax.speech_decoder.synthesis import SpeechDecoder
from speechlm_jax.speech_tokenizer.reading import Transcriber
from speechlm_jax.text import TextTokenizer, make_vocab
from speechlm_jax.text_to_token.synthesize import (
    SpeechRequest,
    SynthesisConfig,
    TextToToken,
    sayable,
)
from speechlm_jax.train import checkpoint_folder
from speechlm_jax.vocab import Vocab
from speechlm_jax.vocab_files import read_text


@dataclasses.dataclass
class Bundle:
    """Trained models that belong together.

    Attributes:
      folder: folder that the paths of the contents are relative to.
      contents: its parts and vocabularies.
      batch_size: requests that a language model answers at once; fewer are padded to this number.
      clip_batch_size: clips that the speech tokenizer takes at once; the speech decoder takes at
        most 32 of them.
      mesh: devices over which language and text-to-token models are split. The speech tokenizer and
        the speech decoder stay on the first device. None: every model does.

    Raises:
      UserError: a requested model or vocabulary is not in the bundle, is not trained yet, or
        belongs to other codes or another vocabulary.
    """

    folder: Path
    contents: Contents
    batch_size: int = dataclasses.field(default=64, kw_only=True)
    clip_batch_size: int = dataclasses.field(default=64, kw_only=True)
    mesh: Mesh | None = dataclasses.field(default=None, kw_only=True)

    def part(self, name: PartName) -> Part:
        """Returns the part of this name; raises UserError if the bundle has none."""
        require_parts(self.folder, self.contents, [name])
        return self.contents.parts[name]

    def path(self, name: PartName) -> Path:
        """Returns the folder of a part, which is that of its training or of a checkpoint."""
        return beside(self.folder, self.part(name).folder)

    def home(self, name: PartName) -> Path:
        """Returns the folder of a part's training."""
        return checkpoint_folder.training_folder(self.path(name))

    def fingerprint(self, name: PartName) -> str:
        """Returns the fingerprint of a part's manifest; without a manifest, of its weights."""
        folder = self.path(name)
        if (folder / artifacts.MANIFEST).is_file():
            return artifacts.read_manifest(folder).fingerprint
        return runs.run_fingerprint(folder)

    @cached_property
    def codes(self) -> CodesIdentity:
        """Identity of the codes that the models make and take."""
        voiced = self.contents.parts.get("text_to_token")
        for vocab in (self.contents.vocab, voiced.vocab if voiced else None):
            if vocab is not None:
                return vocab.codes
        return runs.trained_codes(self.path("tokenizer"))

    @cached_property
    def text(self) -> TextTokenizer:
        """The text vocabulary of rows and language models."""
        return self._read_text(self.contents.text, self.contents.vocab)

    @cached_property
    def vocab(self) -> Vocab:
        """The vocabulary of rows and language models."""
        return self.contents.vocab or make_vocab(self.text, self.codes)

    @property
    def writer(self) -> Writer:
        """Writer of text and codes as the language model's ids."""
        return Writer(self.vocab, self.text)

    @property
    def reader(self) -> Transcriber:
        """The speech tokenizer."""
        reader, identity = self._read_tokenizer
        if identity != self.codes:
            identity.require_same(
                self.codes, f"{self.path('tokenizer')}: makes codes of", "the other models take",
                "use parts that belong together (`speechlm bundle make`)",
            )  # fmt: skip
        return reader

    @cached_property
    def mel(self) -> MelConfig:
        """Settings of the mel frames that the speech tokenizer reads."""
        return runs.trained_mel(self.path("tokenizer"))

    def check_mel(self) -> None:
        """Raises UserError if speech decoder and speech tokenizer differ in their mel settings."""
        if {"tokenizer", "speech_decoder"} <= self.contents.parts.keys():
            reads, makes = self.path("tokenizer"), self.path("speech_decoder")
            if runs.trained_mel(makes) != runs.trained_mel(reads):
                raise UserError(
                    f"{makes}: makes mel frames of other settings than {reads} reads; train both "
                    "on features of the same settings"
                )

    @cached_property
    def voiced_vocab(self) -> Vocab:
        """The text-to-token model's vocabulary, which has an id for each voice."""
        vocab = self.part("text_to_token").vocab
        if vocab is None:
            raise UserError(
                f"{self.path('text_to_token')}: has no vocab.json, so its voices are not known; "
                "copy the vocabulary that its rows were prepared with there"
            )
        return vocab

    @property
    def voices(self) -> tuple[str, ...]:
        """Names of the voices that the text-to-token model knows."""
        return self.voiced_vocab.voices

    @cached_property
    def speech_decoder(self) -> SpeechDecoder:
        """The speech decoder."""
        folder, part = self.path("speech_decoder"), self.part("speech_decoder")
        self.check_mel()
        return runs.load_speech_decoder(
            folder, tokenizer=self.codes.tokenizer, fingerprint=part.fingerprint,
            batch_size=min(self.clip_batch_size, 32),
        )[0]  # fmt: skip

    @cached_property
    def decoder_voices(self) -> tuple[str, ...]:
        """Names of the speech decoder's voices, numbered from 1; () if they are not known.

        Earlier versions did not save the names. For their models, the text-to-token model's names
        are used if the numbers of voices are equal.
        """
        kept = self.home("speech_decoder") / VOICES
        if kept.is_file():
            names = artifacts.read_json(kept)
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise UserError(f"{kept}: is no list of names; train the speech decoder again")
            return tuple(names)
        is_alike = "text_to_token" in self.contents.parts and (
            self.speech_decoder.config.num_voices == len(self.voices)
        )
        return self.voices if is_alike else ()

    def make_text_to_token(
        self, config: SynthesisConfig, *, vocab: Vocab | None = None
    ) -> TextToToken:
        """Loads the text-to-token model, with the sampling settings of `config`.

        Args:
          vocab: its vocabulary; None takes the one that the bundle has.
        """
        part, vocab = self.part("text_to_token"), vocab or self.voiced_vocab
        inference, _ = runs.load_inference(
            self.path("text_to_token"), kind="text_to_token", vocab=vocab,
            fingerprint=part.fingerprint, batch_size=self.batch_size, sayable=sayable(vocab),
            mesh=self.mesh,
        )  # fmt: skip
        return TextToToken(inference, vocab, self._said_text, config)

    def language_model(self, checkpoint: str | Path, *, fingerprint: str = "") -> Inference:
        """Loads a language model with the bundle's vocabulary, from its run or a checkpoint."""
        return runs.load_inference(
            checkpoint, kind="lm", vocab=self.vocab, fingerprint=fingerprint,
            batch_size=self.batch_size, mesh=self.mesh,
        )[0]  # fmt: skip

    def part_model(self, name: Literal["lm", "chat"]) -> Inference:
        """Loads a language model that is a part of the bundle."""
        return self.language_model(self.path(name), fingerprint=self.part(name).fingerprint)

    # `_frames`: clips differ in length.
    def read(self, codes: Sequence[Integer[ndarray, " _frames"] | Sequence[int]]) -> list[str]:
        """Returns the text of each sequence of codes, as the tokenizer's own ASR reads it."""
        clips = [np.asarray(clip, np.int32) for clip in codes]
        return [self._heard_text.decode(ids) for ids in self.reader.codes_to_ids(clips)]

    def say(self, word: str) -> str | None:
        """Returns the input of the text-to-token model for a word of a text.

        That is "" if the word is not spoken, e.g. punctuation. It is None if normalising would
        change how the word is read, or if the model's vocabulary lacks it (a word that is encoded
        as bytes was not learnt).
        """
        said = word_to_said(word)
        return said if said is None or all(map(self._is_known, said.split())) else None

    def _is_known(self, word: str) -> bool:
        text = self._said_text
        ids = text.encode(word)
        in_bytes = any("\N{REPLACEMENT CHARACTER}" in text.decode([id_]) for id_ in ids)
        return text.decode(ids) == word and not in_bytes

    @cached_property
    def _heard_text(self) -> TextTokenizer:
        return self._read_text(self.part("tokenizer").text)

    @cached_property
    def _said_text(self) -> TextTokenizer:
        part = self.part("text_to_token")
        return self._read_text(part.text, part.vocab)

    def _read_text(self, name: str, vocab: Vocab | None = None) -> TextTokenizer:
        if not name:
            raise UserError(
                f"{self.folder}: has no text vocabulary; copy the one that its models were trained "
                "with there, as text.model or tokenizer.json"
            )
        return read_text(beside(self.folder, name), vocab)

    @cached_property
    def _read_tokenizer(self) -> tuple[Transcriber, CodesIdentity]:
        folder, part = self.path("tokenizer"), self.part("tokenizer")
        return runs.load_reader(
            folder, fingerprint=part.fingerprint, batch_size=self.clip_batch_size
        )


def spans_to_codes(model: TextToToken, requests: Sequence[SpanRequest]) -> list[list[int]]:
    """Returns the codes of spans of documents; each span is sampled with its own seed."""
    spoken = [SpeechRequest(r.text, r.speaker, seed=r.seed) for r in requests]
    return [codes.tolist() for codes in model.text_to_codes(spoken)]
