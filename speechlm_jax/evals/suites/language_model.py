"""Suite for a speech-text language model: spoken questions, stories, and controls."""

import dataclasses
from collections.abc import Sequence

from speechlm_jax.data.formats import Writer
from speechlm_jax.evals import spoken_qa, storycloze
from speechlm_jax.evals.controls import exchange
from speechlm_jax.evals.items import Item
from speechlm_jax.evals.spoken_qa import Question, ReadCodes
from speechlm_jax.evals.suites.clips import EvaluationClips, by_class
from speechlm_jax.nn.inference import Inference
from speechlm_jax.vocab import Modality

MAX_ANSWER_CODES = 40  # "it is" and a value at the slowest rate last under three seconds


def lm_items(
    arm: str,
    spoken: EvaluationClips,
    inference: Inference,
    writer: Writer,
    read: ReadCodes,
    *,
    seed: int,
) -> list[Item]:
    """Scores questions (greedily and by likelihood), stories and controls, under the name `arm`."""
    questions = spoken.questions()
    items = []
    for kind, suffix in (
        ("interleaved", ""),
        ("new_wording", "_new_wording"),
        ("text_only", "_text_only"),
    ):
        asked = by_class(questions, kind)
        items += _question_items(asked, suffix, arm, inference, writer, read)
    heard = [question for question in questions if question.wording == "interleaved"]
    mixed = exchange_codes(heard, seed=seed)
    items += spoken_qa.answer_in_text(
        f"qa/s2t_shuffled/{arm}",
        mixed,
        asked_in="speech",
        generate=inference.generate,
        writer=writer,
    )
    items += spoken_qa.answer_in_speech(
        f"qa/s2s_shuffled/{arm}", mixed, generate=inference.generate, read_codes=read,
        writer=writer, max_new=MAX_ANSWER_CODES,
    )  # fmt: skip
    for direction in storycloze.DIRECTIONS:
        items += storycloze.story_items(
            f"storycloze/{direction}/{arm}", spoken.stories(), direction=direction,
            score=inference.score, writer=writer,
        )  # fmt: skip
    return items


def _question_items(
    asked: Sequence[Question],
    suffix: str,
    arm: str,
    inference: Inference,
    writer: Writer,
    read: ReadCodes,
) -> list[Item]:
    """Scores questions about one class of facts in every mode."""
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
            writer=writer,
        )
        items += spoken_qa.choose_in_text(
            f"qa/{mode}{suffix}_choice/{arm}",
            questions,
            asked_in=modality,
            score=score,
            writer=writer,
        )
    items += spoken_qa.answer_in_speech(
        f"qa/s2s{suffix}/{arm}", asked, generate=generate, read_codes=read, writer=writer,
        max_new=MAX_ANSWER_CODES,
    )  # fmt: skip
    items += spoken_qa.choose_in_speech(
        f"qa/s2s{suffix}_choice/{arm}", asked, score=score, writer=writer
    )
    return items


def exchange_codes(questions: Sequence[Question], *, seed: int) -> list[Question]:
    """Returns each question with the codes of a question about another fact."""
    codes = exchange([q.codes for q in questions], [q.fact for q in questions], seed=seed)
    return [dataclasses.replace(q, codes=c) for q, c in zip(questions, codes, strict=True)]
