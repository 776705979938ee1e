"""Both modes ask for exactly the rows that fine-tuning saw, and read the replies back."""

import numpy as np
import pytest

from speechlm_jax.chat.dialogue import Chat, ChatConfig

QUESTIONS = [np.array([1, 2, 3]), np.array([4, 5])]
SPOKEN = [[7, 7, 8], []]
CONFIG = ChatConfig(max_text=5, max_codes=9)


def speech(vocab):
    return [vocab.codes_to_ids(np.array(codes, int)).tolist() for codes in SPOKEN]


def row(writer, codes, reply):
    """A training row, and where its loss begins."""
    turns = [
        {"role": "user", "segments": [{"codes": codes.tolist()}]},
        {"role": "assistant", "segments": reply},
    ]
    example = writer.dialogue(turns)
    return [*example.inputs.tolist(), *example.targets.tolist()], len(example.inputs)


def test_speech_alone(writer, scripted):
    vocab, model = writer.vocab, scripted(speech(writer.vocab))
    replies = Chat(model, writer, CONFIG).reply(QUESTIONS, mode="speech_only", seed=4)
    assert [reply.text for reply in replies] == ["", ""]
    for reply, codes in zip(replies, SPOKEN, strict=True):
        np.testing.assert_array_equal(reply.codes, codes)
    (asked,) = model.asked
    for question, request, codes in zip(QUESTIONS, asked, SPOKEN, strict=True):
        ids, inputs = row(writer, question, [{"codes": codes}])
        assert list(request.prompt) == ids[: inputs + 1]  # begin of speech is given
        assert request.max_new == 9 and request.stops == (vocab["end_of_speech"],)
        said = set(request.allowed)
        assert said == {*vocab.codes_to_ids(np.arange(16)).tolist(), vocab["end_of_speech"]}
    assert [request.seed for request in asked] == [4, 5]


def test_text_then_speech(writer, scripted):
    vocab = writer.vocab
    texts = ["it is paris", "rome"]
    said = [writer.tokenizer.encode(text) for text in texts]
    model = scripted([ids[:1] for ids in said], [ids[1:] for ids in said], speech(vocab))
    replies = Chat(model, writer, CONFIG).reply(QUESTIONS, mode="text_guided")
    assert [reply.text for reply in replies] == texts
    first, rest, second = model.asked
    for number, question in enumerate(QUESTIONS):
        ids, inputs = row(writer, question, [{"text": texts[number]}, {"codes": SPOKEN[number]}])
        assert list(first[number].prompt) == ids[:inputs]
        assert list(second[number].prompt) == ids[: inputs + len(said[number]) + 1]
        assert first[number].max_new == 1, "no reply without text: its first id is held to text"
        assert set(first[number].allowed) == set(range(vocab.text_size))
        assert list(rest[number].prompt) == [*ids[:inputs], said[number][0]]
        assert rest[number].stops == (vocab["begin_of_speech"],)
        assert rest[number].max_new == 5
        allowed = rest[number].allowed
        assert set(allowed) == {*range(vocab.text_size), vocab["begin_of_speech"]}


def test_more_questions_than_slots_are_answered_in_turns(writer, scripted):
    said = speech(writer.vocab)
    model = scripted(said, said[:1])
    replies = Chat(model, writer, CONFIG).reply([*QUESTIONS, QUESTIONS[0]], mode="speech_only")
    assert [reply.codes.tolist() for reply in replies] == [*SPOKEN, SPOKEN[0]]
    assert [[request.seed for request in asked] for asked in model.asked] == [[0, 1], [2]]
    assert model.closed == 3, "each dialogue gives its slot back"


@pytest.mark.parametrize("mode", ["speech_only", "text_guided"])
def test_no_questions_get_no_replies(writer, scripted, mode):
    assert Chat(scripted([], [], []), writer).reply([], mode=mode) == []
