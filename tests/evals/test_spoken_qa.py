"""Properties of speechlm_jax.evals.spoken_qa."""

import pytest

from speechlm_jax.evals import spoken_qa
from speechlm_jax.evals.items import figure_from_items
from speechlm_jax.evals.spoken_qa import Question

VALUES = ("paris", "rome", "oslo")
ANSWERS = {"anna": "paris", "bob": "rome"}


def make_questions():
    return [
        Question(
            fact=f"{person}/city",
            wording="what is",
            voice="v",
            text=f"what is the city of {person}",
            lead="it is",
            answer=answer,
            values=VALUES,
            codes=[number, 7],
            spoken_answers=([10, 0], [10, 1, 1, 1], [10, 2]),
        )
        for number, (person, answer) in enumerate(ANSWERS.items())
    ]


class Oracle:
    """Knows every answer: recognises a question by the words or the codes in its prompt."""

    def __init__(self, writer):
        self.writer = writer
        self.requests = []

    def _number(self, prompt):
        people = [self.writer.continuation(person)[0] for person in ANSWERS]
        codes = [self.writer.continuation([n])[0] for n in range(len(ANSWERS))]
        return next(i for i in range(len(ANSWERS)) if people[i] in prompt or codes[i] in prompt)

    def generate(self, requests):
        self.requests += requests
        replies = []
        for request in requests:
            number = self._number(request.prompt)
            speech = self.writer.continuation([0])[0] in request.allowed
            value = list(ANSWERS.values())[number]
            replies.append(
                self.writer.continuation([10, VALUES.index(value)])
                if speech
                else self.writer.continuation(f"{value} what")
            )
        for reply, request in zip(replies, requests, strict=True):
            assert {*reply, *request.stops} <= {*request.allowed}
        return replies

    def score(self, requests):
        write = self.writer.continuation
        right = [list(ANSWERS.values())[self._number(r.prompt)] for r in requests]
        said = [[*write(value), *write([VALUES.index(value)])] for value in right]
        return [
            -float(not set(r.continuation) & set(ids)) * len(r.continuation)
            for r, ids in zip(requests, said, strict=True)
        ]


def read_codes(codes):
    return [f"it is {VALUES[row[1]]}" for row in codes]


def test_one_who_knows_is_right_in_every_mode(writer):
    oracle, questions = Oracle(writer), make_questions()
    common = {"writer": writer}
    items = [
        *spoken_qa.answer_in_text(
            "a", questions, asked_in="speech", generate=oracle.generate, **common
        ),
        *spoken_qa.answer_in_text(
            "a", questions, asked_in="text", generate=oracle.generate, **common
        ),
        *spoken_qa.answer_in_speech(
            "a", questions, generate=oracle.generate, read_codes=read_codes, max_new=8, **common
        ),
        *spoken_qa.choose_in_text("a", questions, asked_in="speech", score=oracle.score, **common),
        *spoken_qa.choose_in_text("a", questions, asked_in="text", score=oracle.score, **common),
        *spoken_qa.choose_in_speech("a", questions, score=oracle.score, **common),
    ]
    assert figure_from_items(items).value == 1
    assert len(items) == 12
    assert {item.reference for item in items} == set(ANSWERS.values())
    assert items[0].hypothesis == "paris what"


def test_prompts_are_those_of_interleaved_documents(writer):
    oracle, questions = Oracle(writer), make_questions()[:1]
    spoken_qa.answer_in_text(
        "a", questions, asked_in="speech", generate=oracle.generate, writer=writer
    )
    spoken_qa.answer_in_speech(
        "a", questions, generate=oracle.generate, read_codes=read_codes, writer=writer, max_new=8
    )
    vocab = writer.vocab
    codes = [vocab["begin_of_speech"], *writer.continuation([0, 7])]
    lead = writer.continuation("it is")
    assert oracle.requests[0].prompt == [*codes, vocab["end_of_speech"], *lead]
    assert oracle.requests[1].prompt == codes


def test_one_who_always_says_the_same_is_at_chance(writer):
    questions = make_questions()
    items = spoken_qa.choose_in_text(
        "a", questions, asked_in="text", score=lambda r: [0.0] * len(r), writer=writer
    )
    assert figure_from_items(items).value == pytest.approx(spoken_qa.chance(questions)) == 1 / 3


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("paris", True),
        ("It is Paris.", True),
        ("paris rome", True),
        ("rome paris", False),
        ("it paris", False),
        ("it is it is paris", False),
        ("", False),
    ],
)
def test_matching_rule(reply, right):
    assert spoken_qa.is_right(make_questions()[0], reply) is right


@pytest.mark.parametrize(
    ("reply", "named"),
    [
        ("it is paris", "paris"),
        ("i think it must be rome or paris", "rome"),
        ("comparisons", None),
        ("", None),
    ],
)
def test_named_value(reply, named):
    assert spoken_qa.named_value(make_questions()[0], reply) == named


def test_the_longer_of_two_values_that_start_together():
    question = Question("f", "", "", "", "", "new york", ("new", "new york"))
    assert spoken_qa.named_value(question, "in new york") == "new york"


def test_reply_items():
    items = spoken_qa.reply_items("chat", make_questions(), ["well paris", "it is oslo"])
    assert [item.numerator for item in items] == [1.0, 0.0]


def test_a_value_without_its_answer(writer):
    question = Question("anna/city", "", "", "", "", "paris", VALUES, codes=[1])
    with pytest.raises(ValueError, match="anna/city"):
        spoken_qa.choose_in_speech("a", [question], score=lambda r: [0.0], writer=writer)
