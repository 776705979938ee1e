"""Writes text, codes and segments as the ids of a document: one format for each kind of data.

The paper names the data and where the loss falls (on the target side of ASR and TTS, else
everywhere), but not the markers between them; the markers are ours.

    text          text eos
    speech        begin_of_speech codes end_of_speech eos
    asr           asr begin_of_speech codes end_of_speech | text eos
    tts           tts text | begin_of_speech codes end_of_speech eos
    voiced_tts    voice tts text | begin_of_speech codes end_of_speech eos
    interleaved   text begin_of_speech codes end_of_speech text ... eos
    dialogue      user segments assistant | segments eos     (any number of turns before `|`)

The part before `|` is `inputs` (no loss), the part after it is `targets`. Prompts (`prompt`,
`dialogue_prompt`, `voiced_tts_prompt`) are the beginnings of these formats.

Segments of which one has a "said" hold their text as it is written, white space included, and
nothing is added to it. In others (of earlier versions; codes made elsewhere) a blank is implied
between two segments.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from speechlm_jax.arrays import Int, Integer, ndarray
from speechlm_jax.data.packing import Document
from speechlm_jax.text import TextTokenizer
from speechlm_jax.vocab import Modality, Vocab

Codes = Sequence[int] | Integer[ndarray, " frames"]
VERSION = 1  # of this file's rules; shards of another version are prepared again


@dataclasses.dataclass(frozen=True)
class Example:
    """A document before packing: only `targets` count in the loss."""

    inputs: Int[ndarray, " inputs"]
    targets: Int[ndarray, " targets"]


@dataclasses.dataclass(frozen=True)
class Writer:
    """A writer of documents in the ids of one vocabulary.

    Attributes:
      vocab: the joint vocabulary.
      tokenizer: tokenizer of its text.
    """

    vocab: Vocab
    tokenizer: TextTokenizer

    def __post_init__(self) -> None:
        # so that no text is written with the id of a special
        object.__setattr__(self, "tokenizer", self.tokenizer.for_vocab(self.vocab))

    def text(self, text: str) -> Example:
        """Writes plain text."""
        return _example([], [*self.tokenizer.encode(text), self.vocab["eos"]])

    def speech(self, codes: Codes) -> Example:
        """Writes speech without a transcript."""
        return _example([], [*self.spoken(codes), self.vocab["eos"]])

    def asr(self, codes: Codes, text: str) -> Example:
        """Writes speech, then its transcript."""
        targets = [*self.tokenizer.encode(text), self.vocab["eos"]]
        return _example([self.vocab["asr"], *self.spoken(codes)], targets)

    def tts(self, codes: Codes, text: str) -> Example:
        """Writes text, then its speech."""
        inputs = [self.vocab["tts"], *self.tokenizer.encode(text)]
        return _example(inputs, [*self.spoken(codes), self.vocab["eos"]])

    def voiced_tts(self, codes: Codes, text: str, speaker: str) -> Example:
        """Writes text, then its speech by one of the vocabulary's voices."""
        plain = self.tts(codes, text)
        return _example(
            [self.vocab.voice_id(speaker), *plain.inputs.tolist()], plain.targets.tolist()
        )

    def interleaved(self, segments: Sequence[Mapping[str, Any]]) -> Example:
        """Writes segments {"text"} or {"codes", ...} as one sequence."""
        return _example([], [*self.segments(segments), self.vocab["eos"]])

    def dialogue(self, turns: Sequence[Mapping[str, Any]]) -> Example:
        """Writes turns {"role", "segments"}; only the last, the assistant's, has a loss."""
        if not turns or turns[-1]["role"] != "assistant":
            raise ValueError("a dialogue ends with a turn of the assistant")
        reply = self.segments(turns[-1]["segments"])
        return _example(self.dialogue_prompt(turns[:-1]), [*reply, self.vocab["eos"]])

    def dialogue_prompt(self, turns: Iterable[Mapping[str, Any]]) -> list[int]:
        """Returns the beginning of a dialogue, up to the assistant's reply."""
        ids: list[int] = []
        for turn in turns:
            ids += [self.vocab[turn["role"]], *self.segments(turn["segments"])]
        return [*ids, self.vocab["assistant"]]

    def segments(self, segments: Sequence[Mapping[str, Any]]) -> list[int]:
        """Returns the ids of segments {"text"} or {"codes", ...}, one after the other."""
        verbatim = are_verbatim(segments)
        ids: list[int] = []
        for segment in segments:
            if "codes" in segment:
                ids += self.spoken(segment["codes"])
            else:
                continues = bool(ids) and not verbatim
                ids += self.tokenizer.encode(segment["text"], continues=continues)
        return ids

    def spoken(self, codes: Codes) -> list[int]:
        """Returns codes as ids between markers; ValueError if one is outside the codebook."""
        ids = self.vocab.codes_to_ids(np.asarray(codes, np.int32))
        return [self.vocab["begin_of_speech"], *ids.tolist(), self.vocab["end_of_speech"]]

    def prompt(self, part: str | Codes, *, then: Modality) -> list[int]:
        """Returns the beginning of an interleaved document: text or codes, to continue in `then`.

        Only a change of modality is marked: speech that continues stays inside its span.
        """
        if isinstance(part, str):
            opening = [self.vocab["begin_of_speech"]] if then == "speech" else []
            return [*self.tokenizer.encode(part), *opening]
        ids = self.spoken(part)
        return ids if then == "text" else ids[:-1]

    def continuation(self, part: str | Codes) -> list[int]:
        """Returns the ids that follow such a prompt: of text, or of codes without their markers."""
        if isinstance(part, str):
            return self.tokenizer.encode(part, continues=True)
        return self.spoken(part)[1:-1]

    def voiced_tts_prompt(self, text: str, speaker: str) -> list[int]:
        """Returns the beginning of `voiced_tts`, up to the codes."""
        inputs = self.voiced_tts((), text, speaker).inputs
        return [*inputs.tolist(), self.vocab["begin_of_speech"]]

    def decode_text(self, ids: Sequence[int]) -> str:
        """Returns the text of those ids that are text; leaves out the others."""
        every = np.asarray(ids, np.int64)
        return self.tokenizer.decode(every[self.vocab.is_text(every)].tolist())

    def ids_to_text(self, ids: Int[ndarray, " length"] | Sequence[int]) -> str:
        """Renders ids of both modalities as readable text: `anna <begin_of_speech><17><3>...`."""
        names = {id_: name for name, id_ in self.vocab.special_ids.items()}
        parts: list[str] = []
        run: list[int] = []
        for id_ in [*map(int, ids), -1]:
            if 0 <= id_ < self.vocab.text_size and id_ not in names:
                run.append(id_)
                continue
            if run:
                parts.append(self.tokenizer.decode(run))
                run = []
            if id_ in names:
                parts.append(f"<{names[id_]}>")
            elif self.vocab.is_speech(np.array([id_])).any():
                parts.append(f"<{id_ - self.vocab.speech_offset}>")
            elif id_ >= 0:
                parts.append(f"<id {id_}>")
        return " ".join(parts).replace("> <", "><")


def are_verbatim(segments: Sequence[Mapping[str, Any]]) -> bool:
    """Returns whether segments hold their own white space: at least one of them has a "said"."""
    return any("said" in segment for segment in segments)


def segments_to_text(segments: Sequence[Mapping[str, Any]]) -> str:
    """Returns the text of a document from its segments, each with its "text"."""
    between = "" if are_verbatim(segments) else " "
    return between.join(segment["text"] for segment in segments)


def example_to_document(example: Example) -> Document:
    """Joins inputs and targets into one document; only targets count in the loss."""
    ids = np.concatenate([example.inputs, example.targets]).astype(np.int32)
    return Document(ids, np.arange(len(ids)) >= len(example.inputs))


def _example(inputs: Sequence[int], targets: Sequence[int]) -> Example:
    return Example(np.asarray(inputs, np.int32), np.asarray(targets, np.int32))
