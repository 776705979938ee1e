"""Trained models and evaluation clips -> scored items, one group of figures a function."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from speechlm_jax.audio.griffin_lim import mel_to_wav
from speechlm_jax.audio.mel import MelConfig, wav_to_mel
from speechlm_jax.audio.wav import level_db
from speechlm_jax.chat.dialogue import Chat, Mode
from speechlm_jax.evals import abx, codebook, spoken_qa, storycloze
from speechlm_jax.evals.controls import exchange
from speechlm_jax.evals.formats import Formats
from speechlm_jax.evals.items import Item
from speechlm_jax.evals.spoken_qa import Question, ReadCodes
from speechlm_jax.evals.wer import Reading, entity_wer_items, wer_items
from speechlm_jax.lm.row_losses import RowLoss
from speechlm_jax.nn.inference import Inference
from speechlm_jax.quickstart.report_inputs import LOSSES
from speechlm_jax.quickstart.spoken import Spoken, by_class
from speechlm_jax.speech_decoder.synthesis import SpeechDecoder
from speechlm_jax.speech_tokenizer.reading import Reader
from speechlm_jax.text_to_token.synthesize import SpeechRequest, TextToToken
from speechlm_jax.vocab import Modality

MAX_ANSWER_CODES = 40  # "it is" and a value at the slowest rate last under three seconds


def tokenizer_items(spoken: Spoken, read: ReadCodes, reader: Reader, *, seed: int) -> list[Item]:
    """WER on held-out voices, on entities alone, with other clips' codes; usage; ABX."""
    entities = spoken.world.tables.entities
    strings = spoken.of_kind("eval_string")
    items = []
    for name, kind in (
        ("", "eval_string"),
        ("_sentences", "eval_sentence"),
        ("_questions", "question"),
    ):
        rows = spoken.of_kind(kind)
        heard = readings(rows, read([row["codes"] for row in rows]))
        items += wer_items(f"tokenizer/wer{name}", heard)
        if kind == "eval_string":
            items += entity_wer_items("tokenizer/entity_wer", heard, entities)
    shuffled = exchange([r["codes"] for r in strings], [r["text"] for r in strings], seed=seed)
    items += wer_items("tokenizer/wer_shuffled", readings(strings, read(shuffled)))
    counts = codebook.code_counts(held_out_codes(spoken), codebook_size=len(reader.codebook))
    items += codebook.usage_items("tokenizer/codebook_usage", counts)
    words = spoken.unseen_words()
    for name in ("dtw", "edit"):
        distance = abx.make_distance(name, reader.codebook if name == "dtw" else None)
        items += abx.abx_items(
            f"tokenizer/abx_{name}", words, distance=distance, limit=4000, seed=seed
        )
    return items


def held_out_codes(spoken: Spoken) -> list[list[int]]:
    """The codes of held-out strings, sentences and questions."""
    kinds = ("eval_string", "eval_sentence", "question")
    return [row["codes"] for kind in kinds for row in spoken.of_kind(kind)]


def text_to_token_items(
    texts: Mapping[str, Sequence[str]],
    model: TextToToken,
    read: ReadCodes,
    *,
    voices: Sequence[str],
    seed: int,
) -> list[Item]:
    """Read-back WER on unseen texts by kind; what the model could not say counts as deleted."""
    items = []
    for name, lines in texts.items():
        requests = [
            SpeechRequest(text, voice=voices[i % len(voices)], seed=seed + i)
            for i, text in enumerate(lines)
        ]
        heard = read([codes.tolist() for codes in model.text_to_codes(requests)])
        pairs = [
            Reading(request.text, hypothesis, voice=request.voice)
            for request, hypothesis in zip(requests, heard, strict=True)
        ]
        items += wer_items(name, pairs)
    return items


def span_items(documents: Iterable[Mapping[str, Any]], read: ReadCodes, *, most: int) -> list[Item]:
    """WER of the first spans of interleaved documents, as the language model gets to see them."""
    told = (segment for row in documents for segment in row["segments"] if "codes" in segment)
    spans = list(islice(told, most))
    heard = read([span["codes"] for span in spans])
    return wer_items(
        "interleaved/wer",
        [Reading(span["text"], text) for span, text in zip(spans, heard, strict=True)],
    )


def lm_items(
    arm: str, spoken: Spoken, inference: Inference, formats: Formats, read: ReadCodes, *, seed: int
) -> list[Item]:
    """Spoken questions (greedy and by likelihood), stories, and the shuffled control of an arm."""
    questions = spoken.questions()
    items = []
    for kind, suffix in (
        ("interleaved", ""),
        ("new_wording", "_new_wording"),
        ("text_only", "_text_only"),
    ):
        asked = by_class(questions, kind)
        items += _question_items(asked, suffix, arm, inference, formats, read)
    heard = [question for question in questions if question.wording == "interleaved"]
    mixed = _exchange_codes(heard, seed=seed)
    items += spoken_qa.answer_in_text(
        f"qa/s2t_shuffled/{arm}",
        mixed,
        asked_in="speech",
        generate=inference.generate,
        formats=formats,
    )
    items += spoken_qa.answer_in_speech(
        f"qa/s2s_shuffled/{arm}", mixed, generate=inference.generate, read_codes=read,
        formats=formats, max_new=MAX_ANSWER_CODES,
    )  # fmt: skip
    for direction in storycloze.DIRECTIONS:
        items += storycloze.story_items(
            f"storycloze/{direction}/{arm}", spoken.stories(), direction=direction,
            score=inference.score, formats=formats,
        )  # fmt: skip
    return items


def _question_items(
    asked: Sequence[Question],
    suffix: str,
    arm: str,
    inference: Inference,
    formats: Formats,
    read: ReadCodes,
) -> list[Item]:
    """One class of facts in every mode."""
    written = list({question.fact: question for question in asked}.values())
    generate, score = inference.generate, inference.score
    items = []
    modes: tuple[tuple[str, Modality, Sequence[Question]], ...] = (
        ("s2t", "speech", asked),
        ("t2t", "text", written),
    )
    for mode, modality, questions in modes:
        items += spoken_qa.answer_in_text(
            f"qa/{mode}{suffix}/{arm}",
            questions,
            asked_in=modality,
            generate=generate,
            formats=formats,
        )
        items += spoken_qa.choose_in_text(
            f"qa/{mode}{suffix}_choice/{arm}",
            questions,
            asked_in=modality,
            score=score,
            formats=formats,
        )
    items += spoken_qa.answer_in_speech(
        f"qa/s2s{suffix}/{arm}", asked, generate=generate, read_codes=read, formats=formats,
        max_new=MAX_ANSWER_CODES,
    )  # fmt: skip
    items += spoken_qa.choose_in_speech(
        f"qa/s2s{suffix}_choice/{arm}", asked, score=score, formats=formats
    )
    return items


def decoder_items(
    rows: Sequence[dict[str, Any]],
    wavs: Sequence[np.ndarray],
    decoder: SpeechDecoder,
    mels_to_text: Callable[[Sequence[np.ndarray]], Sequence[str]],
    *,
    mel: MelConfig,
    seed: int,
) -> list[Item]:
    """WER of audio made from codes, read by the tokenizer's own ASR; level and clipping.

    `speech_decoder/level_difference_db` is the mean level of what was made, less its source's.
    """
    mels = decoder.codes_to_mel([np.array(row["codes"], np.int32) for row in rows], seed=seed)
    made = [mel_to_wav(one, mel, seed=seed) for one in mels]
    heard = mels_to_text([wav_to_mel(wav, mel) for wav in made])
    items = wer_items("speech_decoder/wer", readings(rows, heard))
    for row, source, wav in zip(rows, wavs, made, strict=True):
        difference = level_db(wav) - level_db(source)
        clipped = float(np.mean(np.abs(wav) >= 1.0))
        for figure, value in (("level_difference_db", difference), ("clipped_ratio", clipped)):
            items.append(
                Item(
                    f"speech_decoder/{figure}", row["speaker"], "", "", row["text"], "", value, 1.0
                )
            )
    return items


def chat_items(
    questions: Sequence[Question], chat: Chat, read: ReadCodes, *, suffix: str = "", seed: int
) -> list[Item]:
    """Replies in both modes, their speech read back, and with other questions' codes."""
    items = []
    modes: tuple[Mode, ...] = ("speech_only", "text_guided")
    for mode in modes:
        for name, asked in (("", questions), ("_shuffled", _exchange_codes(questions, seed=seed))):
            replies = chat.reply([q.codes for q in asked], mode=mode, seed=seed)
            heard = read([reply.codes.tolist() for reply in replies])
            items += spoken_qa.reply_items(f"chat/{mode}{suffix}{name}", asked, heard)
    return items


def loss_items(losses: Mapping[str, Sequence[RowLoss]]) -> list[Item]:
    """Held-out loss in nats an id: one item a row of each task."""
    return [
        Item(f"{LOSSES}{task}", "", "", "", f"row {number}", "", row.loss_sum, row.num_ids)
        for task, rows in losses.items()
        for number, row in enumerate(rows)
        if row.num_ids
    ]


def _exchange_codes(questions: Sequence[Question], *, seed: int) -> list[Question]:
    """Each question with the codes of a question about another fact."""
    codes = exchange([q.codes for q in questions], [q.fact for q in questions], seed=seed)
    return [dataclasses.replace(q, codes=c) for q, c in zip(questions, codes, strict=True)]


def readings(rows: Sequence[dict[str, Any]], heard: Sequence[str]) -> list[Reading]:
    """Clips (rows of a codes folder) and what was heard in each."""
    return [
        Reading(row["text"], text, voice=row["speaker"], fact=row.get("fact", ""))
        for row, text in zip(rows, heard, strict=True)
    ]
