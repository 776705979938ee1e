"""The steps that score what was trained: every figure as items that anyone can recount."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from speechlm_jax import artifacts
from speechlm_jax.audio.mel import MelConfig
from speechlm_jax.audio.wav import read_wav
from speechlm_jax.chat.dialogue import Chat
from speechlm_jax.evals.formats import Formats
from speechlm_jax.evals.items import Item, write_items
from speechlm_jax.experiment import load_inference, load_speech_decoder
from speechlm_jax.quickstart import corpora, scoring
from speechlm_jax.quickstart.run import ARMS, Quickstart

_log = logging.getLogger("speechlm.quickstart")


def score(q: Quickstart) -> None:
    """Every figure, as scored items."""
    _score(q, "tokenizer", [q.folders.tokenizer], lambda: scoring.tokenizer_items(
        q.spoken, q.read, q.reader, seed=q.seed))  # fmt: skip
    _score(q, "text_to_token", [q.folders.text_to_token], lambda: _text_to_token_items(q))
    _score(q, "speech_decoder", [q.folders.speech_decoder], lambda: _decoder_items(q))
    for arm in ARMS:
        folder = getattr(q.folders, f"lm_{arm}")
        _score(q, f"lm_{arm}", [folder], lambda arm=arm, folder=folder: scoring.lm_items(
            arm, q.spoken, load_inference(folder)[0], Formats(q.vocab, q.text), q.read, seed=q.seed))  # fmt: skip
    _score(q, "chat", [q.folders.chat], lambda: _chat_items(q))


def _score(q: Quickstart, name: str, models: list[Path], make: Callable[[], list[Item]]) -> None:
    """Scores a group unless it is scored; its items replace those of an earlier model."""
    folder = q.folders.items / name
    inputs = {model.name: q.fingerprint(model) for model in models}
    inputs["evaluation"] = q.fingerprint(q.codes("evaluation"))
    if artifacts.is_current(folder, "items", inputs=inputs, config={}, seed=q.seed):
        return
    _log.info("scoring %s", name)
    files = write_items(folder, make())
    artifacts.write_manifest(folder, "items", inputs=inputs, config={}, seed=q.seed, files=files)


def _text_to_token_items(q: Quickstart) -> list[Item]:
    known = {row["text"] for row in q.features.rows if row["split"] == corpora.TRAIN}
    texts = {
        f"text_to_token/wer{suffix}": corpora.unseen_texts(
            q.world, kind, q.config.corpus.eval_clips, known=known, seed=q.seed + 1
        )
        for suffix, kind in (("", "sentence"), ("_strings", "string"))
    }
    return scoring.text_to_token_items(texts, q.text_to_token, q.read, voices=q.voices, seed=q.seed)


def _decoder_items(q: Quickstart) -> list[Item]:
    rows = q.spoken.of_kind("eval_string")
    wavs = [read_wav(q.folders.clips / row["audio"]) for row in rows]
    decoder, _ = load_speech_decoder(q.folders.speech_decoder)

    def mels_to_text(mels: list[np.ndarray]) -> list[str]:
        return q.read(q.reader.mels_to_codes(mels))

    return scoring.decoder_items(rows, wavs, decoder, mels_to_text, mel=MelConfig(), seed=q.seed)


def _chat_items(q: Quickstart) -> list[Item]:
    inference, _ = load_inference(q.folders.chat)
    chat = Chat(inference, q.writer)
    told = corpora.told_people(q.world)
    asked = [x for x in q.spoken.questions() if x.fact.split("/")[0] not in told]
    return scoring.chat_items(asked, chat, q.read, seed=q.seed)
