"""A special that the text vocabulary has is mapped; what an export would refuse is refused now."""

import dataclasses
import json

import numpy as np
import pytest

from speechlm_jax.codes import CodesIdentity
from speechlm_jax.convert.joint_vocab import joint_vocab
from speechlm_jax.convert.tokenizers import extend_tokenizer, token_ids
from speechlm_jax.errors import UserError
from speechlm_jax.text import TextTokenizer
from speechlm_jax.vocab import SPECIALS, Vocab

CODES = CodesIdentity("glm", 12.5, 3)
ROWS = 300


@pytest.fixture(scope="module")
def model(tokenizer_files):
    return (tokenizer_files / "tokenizer.json").read_bytes()


def with_tokens(model, tokens):
    """The text vocabulary with more tokens, by their ids."""
    data = json.loads(model)
    data["added_tokens"] += [
        {**data["added_tokens"][0], "content": name, "id": id_} for name, id_ in tokens.items()
    ]
    return TextTokenizer(json.dumps(data).encode())


def after(model, *names):
    """Tokens with the ids that follow."""
    first = 1 + max(token_ids(model).values())
    return {name: first + i for i, name in enumerate(names)}


def test_specials_that_glm_has_are_mapped(model):
    vocab, ids = joint_vocab(TextTokenizer(model), CODES, size=ROWS), token_ids(model)
    assert dict(vocab.mapped) == {
        "bos": ids["<sop>"], "eos": ids["<|endoftext|>"], "system": ids["<|system|>"],
        "user": ids["<|user|>"], "assistant": ids["<|assistant|>"],
    }  # fmt: skip
    assert vocab.text_size == ROWS
    assert ROWS <= min(vocab[name] for name in ("begin_of_speech", "end_of_speech", "asr", "tts"))


@pytest.mark.parametrize(
    "names, eos, mapped",
    [
        (["<|im_end|>"], "<|im_end|>", "<|endoftext|>"),
        (["<|end_of_text|>", "<|eos|>"], None, "<|eos|>"),
        ([], "<|user|>", "<|endoftext|>"),
    ],
    ids=str,
)
def test_documents_end_in_the_token_of_that_name(model, names, eos, mapped):
    text = with_tokens(model, after(model, *names))
    assert joint_vocab(text, CODES, size=ROWS, eos=eos)["eos"] == token_ids(text.model)[mapped]


def test_what_we_exported_comes_back_with_the_same_ids(model):
    vocab = joint_vocab(TextTokenizer(model), CODES, size=ROWS)
    exported = TextTokenizer(extend_tokenizer(model, vocab))
    again = joint_vocab(exported, CODES, size=vocab.size)
    assert again.special_ids == vocab.special_ids
    assert (again.speech_offset, again.size) == (vocab.speech_offset, vocab.size)
    assert extend_tokenizer(exported.model, again) == exported.model
    for written in ("<|user|> the <|asr|><|audio_1|>", "<|unused_299|>", "<|unused_310|>"):
        ids = exported.for_vocab(again).encode(written)
        assert again.is_text(np.array(ids)).all() and not {299, 310} & set(ids), written
    with pytest.raises(UserError, match="3 codes from id .* a codebook of 4"):
        joint_vocab(exported, dataclasses.replace(CODES, codebook_size=4), size=vocab.size)


def test_a_named_end_is_taken_where_no_known_name_is_there(model):
    data = json.loads(model)
    for token in data["added_tokens"]:
        token["content"] = f"[{token['content']}]"
    text = TextTokenizer(json.dumps(data).encode())
    ids = token_ids(text.model)
    vocab = joint_vocab(text, CODES, size=ROWS, eos="[<|user|>]")
    assert vocab.mapped == (("eos", ids["[<|user|>]"]),)
    assert joint_vocab(text, CODES, size=ROWS, eos="</absent>").mapped == ()


def test_a_vocabulary_of_an_earlier_version_is_still_exported(model):
    """It added `<|user|>` beside the text vocabulary's own."""
    vocab = Vocab(ROWS, 3, 12.5, "t", "t")
    ids = token_ids(extend_tokenizer(model, vocab))
    assert ids["<|user|>"] == token_ids(model)["<|user|>"]
    assert ids[f"<|user_{vocab['user']}|>"] == vocab["user"] and len(ids) == vocab.size


@pytest.mark.parametrize(
    "tokens, told",
    [
        ({"<|audio_1|>": None}, r"has a token <\|audio_1\|> of its own"),
        ({"far": 2**31}, "has an id 2147483648; the model has 300 rows"),
        ({"far": 2**32 - 1}, "has an id 4294967295"),
        ({"shared": 5}, "and is read as 279; .*not shared"),
    ],
    ids=str,
)
def test_a_text_vocabulary_that_cannot_be_extended_is_refused(model, tokens, told):
    last = after(model, "x")["x"]
    text = with_tokens(model, {name: last if id_ is None else id_ for name, id_ in tokens.items()})
    with pytest.raises(UserError, match=told):
        joint_vocab(text, CODES, size=ROWS)


def speaking(model, codes, **more):
    return with_tokens(model, {f"<|audio_{i}|>": id_ for i, id_ in enumerate(codes)} | more)


def test_a_model_that_speaks_keeps_its_ids(model):
    text = speaking(model, [320, 321, 322])
    vocab, ids = joint_vocab(text, CODES, size=330), token_ids(model)
    assert vocab.size == 330 and vocab.speech_offset == 320 and vocab.codebook_size == 3
    assert vocab["eos"] == ids["<|endoftext|>"] and vocab["user"] == ids["<|user|>"]
    first = 1 + max(ids.values())
    others = sorted(vocab[name] for name in SPECIALS if vocab[name] >= first)
    assert others == list(range(first, first + 4)), "what it lacks lies in the gap"


@pytest.mark.parametrize(
    "codes, more, told",
    [
        ([320, 321], {}, "has 2 codes from id 320 on; --run has a codebook of 3"),
        ([320, 322, 323], {}, "--run has a codebook of 3"),
        ([285, 286, 287], {}, "are all taken"),
        ([320, 321, 322], {"<|more|>": 323}, "are all taken"),
        ([328, 329, 330], {}, "has an id 330; the model has 330 rows"),
    ],
    ids=str,
)
def test_codes_that_do_not_fit_are_refused(model, codes, more, told):
    with pytest.raises(UserError, match=told):
        joint_vocab(speaking(model, codes, **more), CODES, size=330)
