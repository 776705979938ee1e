"""Defines every id range of a language model: codes <-> ids, and the contract's fingerprint.

Order (it never changes, so that later fine-tuning invalidates no shard and no checkpoint):
the text vocabulary's own ids, unchanged | specials | spare | voices | speech codes | padding.
"""

import dataclasses
from functools import cached_property
from typing import Any, Literal

import numpy as np

from speechlm_jax import config as configs
from speechlm_jax.arrays import Bool, Integer, ndarray
from speechlm_jax.codes import CodesIdentity
from speechlm_jax.errors import UserError
from speechlm_jax.id_set import IdSet

SPECIALS = (
    "bos",
    "eos",
    "begin_of_speech",
    "end_of_speech",
    "asr",  # the speech is followed by its transcript
    "tts",  # the text is followed by its speech
    "system",
    "user",
    "assistant",
)
MAX_IDS = 1 << 24  # ids are int32, and masks cover all of them
Modality = Literal["text", "speech"]


@dataclasses.dataclass(frozen=True)
class Vocab:
    """A vocabulary that joins text and speech.

    Attributes:
      text_size: number of the text vocabulary's own ids, 0 .. text_size-1.
      codebook_size: entries of the speech tokenizer's codebook.
      frame_rate_hz: codes per second.
      text_fingerprint: identity of the text vocabulary (from the SHA-256 of its model file).
      tokenizer_fingerprint: identity of the speech tokenizer that makes the codes.
      mapped: specials that the text vocabulary already has, as (name, id): mapped, not added.
      voices: speakers that have an id each (the text-to-token model's prefix).
      num_spare: unused ids kept for later specials.
      pad_to_multiple: the size is padded to a multiple of this, so that it shards.
    """

    text_size: int
    codebook_size: int
    frame_rate_hz: float
    text_fingerprint: str
    tokenizer_fingerprint: str
    mapped: tuple[tuple[str, int], ...] = ()
    voices: tuple[str, ...] = ()
    num_spare: int = 128
    pad_to_multiple: int = 128

    def __post_init__(self) -> None:
        configs.at_least(self, 0, "text_size", "codebook_size", "num_spare")
        configs.at_least(self, 1, "pad_to_multiple")
        configs.above_0(self, "frame_rate_hz")
        if self.size > MAX_IDS:
            raise UserError(f"vocabulary: {self.size} ids; there can be {MAX_IDS}")
        for name, id_ in self.mapped:
            if name not in SPECIALS or not 0 <= id_ < self.text_size:
                raise UserError(
                    f"mapped special ({name!r}, {id_}): is not a special with an id of the text "
                    "vocabulary"
                )

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """Id of every special, mapped or added."""
        mapped = dict(self.mapped)
        added = [name for name in SPECIALS if name not in mapped]
        return {**mapped, **{name: self.text_size + i for i, name in enumerate(added)}}

    @property
    def voice_offset(self) -> int:
        """Id of the first voice."""
        return self.text_size + len(SPECIALS) - len(self.mapped) + self.num_spare

    @property
    def speech_offset(self) -> int:
        """Id of code 0."""
        return self.voice_offset + len(self.voices)

    @property
    def size(self) -> int:
        """Number of ids, padding included."""
        used = self.speech_offset + self.codebook_size
        return -(-used // self.pad_to_multiple) * self.pad_to_multiple

    @property
    def codes(self) -> CodesIdentity:
        """Identity of the codes that have ids in the vocabulary."""
        return CodesIdentity(self.tokenizer_fingerprint, self.frame_rate_hz, self.codebook_size)

    @property
    def id_dtype(self) -> np.dtype:
        """Dtype of ids in shards: uint16 while they fit, else uint32."""
        return np.dtype(np.uint16 if self.size <= 65_536 else np.uint32)

    @property
    def fingerprint(self) -> str:
        """Fingerprint that every shard and checkpoint carries; a mismatch is refused."""
        return configs.fingerprint(self)

    def __getitem__(self, special: str) -> int:
        return self.special_ids[special]

    def voice_id(self, speaker: str) -> int:
        """Returns the id of a voice; raises UserError if it has none."""
        if speaker not in self.voices:
            raise UserError(
                f"speaker {speaker!r}: is not one of the vocabulary's {len(self.voices)} voices"
            )
        return self.voice_offset + self.voices.index(speaker)

    def codes_to_ids(self, codes: Integer[ndarray, "*shape"]) -> Integer[ndarray, "*shape"]:
        """Turns codes 0 .. codebook_size-1 into ids; raises ValueError outside that range."""
        codes = np.asarray(codes)
        if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < self.codebook_size:
            raise ValueError(f"codes outside 0..{self.codebook_size - 1}")
        return np.asarray(codes + self.speech_offset, np.int32)

    def ids_to_codes(self, ids: Integer[ndarray, "*shape"]) -> Integer[ndarray, "*shape"]:
        """Inverts `codes_to_ids`; raises ValueError if an id is not speech."""
        ids = np.asarray(ids)
        if not self.is_speech(ids).all():
            raise ValueError("an id is not a speech code")
        return np.asarray(ids - self.speech_offset, np.int32)

    def is_speech(self, ids: Integer[ndarray, "*shape"]) -> Bool[ndarray, "*shape"]:
        """Returns a mask of the ids that are speech codes."""
        ids = np.asarray(ids)
        return np.asarray(
            (ids >= self.speech_offset) & (ids < self.speech_offset + self.codebook_size)
        )

    def is_text(self, ids: Integer[ndarray, "*shape"]) -> Bool[ndarray, "*shape"]:
        """Returns a mask of the text vocabulary's own ids, without those of mapped specials."""
        ids = np.asarray(ids)
        mapped = [id_ for _, id_ in self.mapped]
        return np.asarray((ids >= 0) & (ids < self.text_size) & ~np.isin(ids, mapped))

    def allowed(self, *modalities: Modality, specials: tuple[str, ...] = ()) -> IdSet:
        """Returns the ids of these modalities, and these specials."""
        mask = np.zeros(self.size, bool)
        if "text" in modalities:
            mask |= self.is_text(np.arange(self.size))
        if "speech" in modalities:
            mask[self.speech_offset : self.speech_offset + self.codebook_size] = True
        mask[[self[name] for name in specials]] = True
        return IdSet.of_mask(mask)

    def require_same(self, other: "Vocab", here: str, there: str) -> None:
        """Raises UserError for a different vocabulary, with both sides and the first difference."""
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if mine != theirs:
                raise UserError(
                    f"vocabularies differ in {field.name}: {here} has {mine!r}, {there} has "
                    f"{theirs!r}; prepare the data again with this vocabulary, or use the "
                    "checkpoint made with it"
                )

    def to_json(self) -> dict[str, Any]:
        """Returns plain data for manifests and checkpoints; `from_json` reads it back."""
        return configs.to_json(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Vocab":
        """Reads a vocabulary from the output of `to_json`."""
        return configs.from_json(cls, data)
