"""Scores the trained models: writes every figure as items from which it can be recomputed."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from speechlm_jax import artifacts
from speechlm_jax.audio.wav import read_wav
from speechlm_jax.chat.dialogue import Chat
from speechlm_jax.evals.items import Item, write_items
from speechlm_jax.evals.suites import (
    chat,
    interleaved,
    language_model,
    speech_decoder,
    text_to_token,
    tokenizer,
)
from speechlm_jax.interleave.build import DOCUMENTS
from speechlm_jax.quickstart import corpora
from speechlm_jax.quickstart.run import ARMS, Chain, Quickstart

DECODED_CLIPS = 100  # Griffin-Lim takes a fifth of a second for each
READ_SPANS = 500
_log = logging.getLogger("speechlm.quickstart")


def score(q: Quickstart) -> None:
    """Scores all models of the run and writes the items."""
    score_group(q, "tokenizer", q.folders.tokenizer, lambda: tokenizer.tokenizer_items(
        q.spoken, q.models.read, q.models.reader, seed=q.seed))  # fmt: skip
    score_group(q, "text_to_token", q.folders.text_to_token, lambda: _text_to_token_items(q))
    documents = artifacts.read_jsonl(q.folders.interleaved / DOCUMENTS)
    score_group(q, "interleaved", q.folders.interleaved, lambda: interleaved.span_items(
        documents, q.models.read, most=READ_SPANS))  # fmt: skip
    score_group(q, "speech_decoder", q.folders.speech_decoder, lambda: decoder_items(
        q, q.spoken.of_kind("eval_string")[:DECODED_CLIPS]))  # fmt: skip
    for arm in ARMS:
        folder = getattr(q.folders, f"lm_{arm}")
        make = partial(_lm_items, q, folder, arm)
        score_group(q, f"lm_{arm}", folder, make)
    score_group(q, "chat", q.folders.chat, lambda: _chat_items(q))


def score_group(
    q: Chain, name: str, model: Path, make: Callable[[], list[Item]], *, codes: str = "evaluation"
) -> None:
    """Scores a group unless it is scored already; its items replace those of an earlier model.

    Args:
      q: the run.
      name: name of the group and of its folder of items.
      model: folder of the model to be scored.
      make: function that scores the model and returns the items.
      codes: name of the codes folder of the held-out clips.
    """
    folder = q.folders.items / name
    inputs = {model.name: q.fingerprint(model), "evaluation": q.fingerprint(q.codes(codes))}
    if artifacts.is_current(folder, "items", inputs=inputs, config={}, seed=q.seed):
        return
    _log.info("scoring %s", name)
    files = [path.name for path in write_items(folder, make())]
    artifacts.write_manifest(folder, "items", inputs=inputs, config={}, seed=q.seed, files=files)


def _text_to_token_items(q: Quickstart) -> list[Item]:
    known = {row["text"] for row in q.features.rows if row["split"] == corpora.TRAIN}
    number = q.config.corpus.eval_clips
    draw = partial(corpora.unseen_texts, q.world, known=known, seed=q.seed + 1)
    texts = {
        "text_to_token/wer": draw("sentence", number),
        "text_to_token/wer_strings": draw("string", number),
    }
    return text_to_token.text_to_token_items(
        texts, q.text_to_token, q.models.read, voices=q.voices, seed=q.seed
    )


def _lm_items(q: Quickstart, folder: Path, arm: str) -> list[Item]:
    models = q.models
    return language_model.lm_items(
        arm, q.spoken, models.language_model(folder), models.writer, models.read, seed=q.seed
    )


def decoder_items(q: Chain, rows: Sequence[dict[str, Any]]) -> list[Item]:
    """Scores the speech decoder on clips (rows of a codes folder).

    Each clip's codes are decoded to audio, whose codes the tokenizer's own ASR reads.
    """
    wavs = [read_wav(q.audio_of(row)) for row in rows]

    def mels_to_text(mels: Sequence[np.ndarray]) -> list[str]:
        return q.models.read(q.models.reader.mels_to_codes(mels))

    return speech_decoder.decoder_items(
        rows, wavs, q.models.speech_decoder, mels_to_text, mel=q.models.mel, seed=q.seed
    )


def _chat_items(q: Quickstart) -> list[Item]:
    assistant = Chat(q.models.part_model("chat"), q.models.writer)
    told = corpora.told_people(q.world)
    asked = [x for x in q.spoken.questions() if x.fact.split("/")[0] not in told]
    return chat.chat_items(asked, assistant, q.models.read, seed=q.seed)
