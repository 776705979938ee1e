"""Questions -> answers of a language model, in text or speech, greedily or by likelihood.

S->T, S->S and T->T of Zeng et al. (arXiv 2411.17607, section 4): the question is spoken or
written, the answer is written, or spoken and read back. The paper states no prompt and no matching
rule. In ours the model continues after the question, and is right iff the first words after the
lead ("it is") are the value.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from speechlm_jax.data.formats import Codes, Writer
from speechlm_jax.data.text_norm import to_words
from speechlm_jax.evals.items import Item
from speechlm_jax.evals.likelihood import Choice, LengthRule, Score, choose
from speechlm_jax.nn.inference import GenerateRequest
from speechlm_jax.vocab import Modality

Generate = Callable[[Sequence[GenerateRequest]], Sequence[Sequence[int]]]
ReadCodes = Callable[[Sequence[Codes]], Sequence[str]]


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """A question about one fact.

    Attributes:
      fact, wording, voice: the fact it asks for, its wording and its voice, as in `Item`.
      text: the question in words.
      lead: words between question and value, e.g. "it is".
      answer: the right value, one of `values`.
      values: all values of the attribute.
      codes: the question as spoken by `voice`.
      spoken_answers: codes of lead and value for each of `values`, for choices in speech.
    """

    fact: str
    wording: str
    voice: str
    text: str
    lead: str
    answer: str
    values: tuple[str, ...]
    codes: Codes = ()
    spoken_answers: tuple[Codes, ...] = ()


def answer_after_lead(reply: str, *, lead: str, num_words: int = 1) -> str:
    """Returns the first `num_words` words of a reply, after the lead if it begins with the lead."""
    words, lead_words = to_words(reply), to_words(lead)
    if words[: len(lead_words)] == lead_words:
        words = words[len(lead_words) :]
    return " ".join(words[:num_words])


def is_right(question: Question, reply: str) -> bool:
    """Returns True if a reply begins with the right value, or with the lead and the right value."""
    value = to_words(question.answer)
    given = answer_after_lead(reply, lead=question.lead, num_words=len(value))
    return given == " ".join(value)


def chance(questions: Sequence[Question]) -> float:
    """Returns the fraction that a guess among the attribute's values gets right."""
    return sum(1 / len(question.values) for question in questions) / len(questions)


def answer_in_text(
    figure: str,
    questions: Sequence[Question],
    *,
    asked_in: Modality,
    generate: Generate,
    writer: Writer,
    max_new: int = 8,
) -> list[Item]:
    """Scores S->T (`asked_in="speech"`) or T->T: text that continues the question and the lead.

    `generate` is greedy; `max_new` ids must hold the longest value.
    """
    allowed = writer.vocab.allowed("text", specials=("eos",))
    replies = generate(
        [
            GenerateRequest(
                prompt=_text_prompt(question, asked_in, writer),
                allowed=allowed,
                stops=(writer.vocab["eos"],),
                max_new=max_new,
            )
            for question in questions
        ]
    )
    return [
        _answer_item(figure, question, writer.decode_text(reply))
        for question, reply in zip(questions, replies, strict=True)
    ]


def answer_in_speech(
    figure: str,
    questions: Sequence[Question],
    *,
    generate: Generate,
    read_codes: ReadCodes,
    writer: Writer,
    max_new: int,
) -> list[Item]:
    """Scores S->S: speech that continues the spoken question, read back to words.

    `max_new` codes must hold lead and value at the slowest rate of speech.
    """
    allowed = writer.vocab.allowed("speech", specials=("end_of_speech",))
    replies = generate(
        [
            GenerateRequest(
                prompt=writer.prompt(question.codes, then="speech"),
                allowed=allowed,
                stops=(writer.vocab["end_of_speech"],),
                max_new=max_new,
                seed=number,
            )
            for number, question in enumerate(questions)
        ]
    )
    said = [writer.vocab.ids_to_codes(np.array(reply, np.int32)) for reply in replies]
    read = read_codes(said)
    return [
        _answer_item(figure, question, reply)
        for question, reply in zip(questions, read, strict=True)
    ]


def choose_in_text(
    figure: str,
    questions: Sequence[Question],
    *,
    asked_in: Modality,
    score: Score,
    writer: Writer,
    length_rule: LengthRule = "mean",
) -> list[Item]:
    """Scores the likeliest of all values after the question and the lead, in text."""
    choices = [
        Choice(
            prompt=_text_prompt(question, asked_in, writer),
            continuations=tuple(writer.continuation(value) for value in question.values),
        )
        for question in questions
    ]
    return _choice_items(figure, questions, choices, score=score, length_rule=length_rule)


def choose_in_speech(
    figure: str,
    questions: Sequence[Question],
    *,
    score: Score,
    writer: Writer,
    length_rule: LengthRule = "mean",
) -> list[Item]:
    """Scores the likeliest of `spoken_answers` after the spoken question."""
    choices = [
        Choice(
            prompt=writer.prompt(question.codes, then="speech"),
            continuations=tuple(writer.continuation(codes) for codes in question.spoken_answers),
        )
        for question in questions
    ]
    return _choice_items(figure, questions, choices, score=score, length_rule=length_rule)


def reply_items(figure: str, questions: Sequence[Question], replies: Sequence[str]) -> list[Item]:
    """Scores replies of a chat, read back to words.

    A reply is right iff the first of the attribute's values that it names is the right one: naming
    several does not help.
    """
    return [
        _item(
            figure, question, reply, 1.0 if named_value(question, reply) == question.answer else 0.0
        )
        for question, reply in zip(questions, replies, strict=True)
    ]


def named_value(question: Question, reply: str) -> str | None:
    """Returns the first of the attribute's values that a reply names, the longest at one place."""
    padded = f" {' '.join(to_words(reply))} "
    places = {value: padded.find(f" {' '.join(to_words(value))} ") for value in question.values}
    named = [value for value, place in places.items() if place >= 0]
    return min(named, key=lambda value: (places[value], -len(value)), default=None)


def _text_prompt(question: Question, asked_in: Modality, writer: Writer) -> list[int]:
    part = question.text if asked_in == "text" else question.codes
    return [*writer.prompt(part, then="text"), *writer.continuation(question.lead)]


def _choice_items(
    figure: str,
    questions: Sequence[Question],
    choices: Sequence[Choice],
    *,
    score: Score,
    length_rule: LengthRule,
) -> list[Item]:
    for question, choice in zip(questions, choices, strict=True):
        if len(choice.continuations) != len(question.values):
            raise ValueError(f"{question.fact}: an answer for each of the values is needed")
    return [
        _item(
            figure,
            question,
            question.values[chosen.best],
            chosen.credit(question.values.index(question.answer)),
        )
        for question, chosen in zip(
            questions, choose(choices, score, length_rule=length_rule), strict=True
        )
    ]


def _answer_item(figure: str, question: Question, reply: str) -> Item:
    return _item(figure, question, reply, 1.0 if is_right(question, reply) else 0.0)


def _item(figure: str, question: Question, reply: str, credit: float) -> Item:
    return Item(
        figure=figure,
        voice=question.voice,
        fact=question.fact,
        wording=question.wording,
        reference=question.answer,
        hypothesis=reply,
        numerator=credit,
        denominator=1.0,
    )
