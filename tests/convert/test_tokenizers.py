"""Tiktoken ranks against tiktoken itself; every id of the joint vocabulary in `transformers`."""

import base64
import json

import pytest

from speechlm_jax.convert.speech_ids import spoken_vocab
from speechlm_jax.convert.tokenizers import (
    SPLIT,
    extend_tokenizer,
    read_tokenizer,
    write_tokenizer,
)
from speechlm_jax.errors import UserError
from speechlm_jax.text import TextTokenizer
from speechlm_jax.vocab import SPECIALS, Vocab

tiktoken = pytest.importorskip("tiktoken", reason="needs the `oracles` extra")
transformers = pytest.importorskip("transformers", reason="needs the `oracles` extra")

TEXT = (
    "It's the cat of Anna, who lives in Paris; she's 1234 years old.\n\n  The cats of Zoë aren't "
    "here: they  like cat-food and the theatre. 你好，世界！ déjà vu\t tabs\r\n"
)
GLM_SPECIALS = {"<|endoftext|>": 300, "<|user|>": 301, "<|begin_of_audio|>": 302}


def merge_ranks(text, number):
    """Byte pairs of a text by how often they stand together, as tiktoken ranks."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    words = [[bytes([b]) for b in b" " + word] for word in text.encode().split(b" ")]
    while len(ranks) < 256 + number:
        pairs = {}
        for word in words:
            for pair in zip(word[:-1], word[1:], strict=True):
                pairs[pair] = pairs.get(pair, 0) + 1
        best = max(sorted(pairs), key=pairs.__getitem__)
        ranks[best[0] + best[1]] = len(ranks)
        for word in words:
            at = 0
            while at < len(word) - 1:
                if (word[at], word[at + 1]) == best:
                    word[at : at + 2] = [best[0] + best[1]]
                at += 1
    return ranks


@pytest.fixture(scope="module")
def ranks():
    return merge_ranks(TEXT, 44)


@pytest.fixture(scope="module")
def glm_folder(ranks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("glm")
    lines = [f"{base64.b64encode(piece).decode()} {rank}" for piece, rank in ranks.items()]
    (folder / "tokenizer.model").write_text("\n".join(lines), encoding="ascii")
    added = {str(id_): {"content": text, "special": True} for text, id_ in GLM_SPECIALS.items()}
    config = json.dumps({"added_tokens_decoder": added})
    (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def text(glm_folder):
    return TextTokenizer(read_tokenizer(glm_folder))


def test_ids_are_those_of_tiktoken(text, ranks):
    theirs = tiktoken.Encoding("glm", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens={})
    for line in (TEXT, *TEXT.split("\n"), "zzz cats", "the theatre of the cat's cat", "日本"):
        assert text.encode(line) == theirs.encode(line)
        assert text.decode(text.encode(line)) == line.strip()
    assert text.size == 303
    assert max(text.encode("<|user|>")) < 256 + 44, "a document's text is never a special"


def test_words_after_speech_keep_their_space(text):
    whole = text.encode("the cat of Anna")
    assert text.encode("the cat") + text.encode("of Anna", continues=True) == whole
    assert text.encode("", continues=True) == []


@pytest.fixture(scope="module")
def vocab(text):
    mapped = (("user", 301), ("begin_of_speech", 302))
    return Vocab(320, 16, 12.5, text.fingerprint, "t", mapped=mapped, voices=("ann",), num_spare=4)


def test_transformers_reads_every_id_of_the_joint_vocabulary(text, vocab, tmp_path):
    write_tokenizer(tmp_path, extend_tokenizer(text.model, vocab), length=64, eos="<|eos|>")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == vocab.size
    assert theirs.convert_tokens_to_ids("<|audio_7|>") == vocab.speech_offset + 7
    assert theirs.convert_tokens_to_ids("<|voice_ann|>") == vocab.voice_offset
    for name in SPECIALS:
        known = {"user": "<|user|>", "begin_of_speech": "<|begin_of_audio|>"}
        assert theirs.convert_tokens_to_ids(known.get(name, f"<|{name}|>")) == vocab[name]
    assert theirs.convert_ids_to_tokens(310) == "<|unused_310|>"
    said = theirs("the cat<|audio_3|><|audio_4|> of Anna").input_ids
    spoken = [vocab.speech_offset + code for code in (3, 4)]
    assert said == text.encode("the cat") + spoken + text.encode("of Anna", continues=True)
    assert theirs.eos_token_id == vocab["eos"]


def test_a_token_of_the_same_name_is_refused(text, vocab):
    data = json.loads(text.model)
    data["added_tokens"][0]["content"] = "<|asr|>"
    with pytest.raises(UserError, match=r"has a token <\|asr\|> of its own, with id 300"):
        extend_tokenizer(json.dumps(data).encode(), vocab)


def test_what_holds_no_vocabulary_is_named(tmp_path):
    with pytest.raises(UserError, match="has neither tokenizer.json nor tokenizer.model"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0e\x00not ranks")
    with pytest.raises(UserError, match="holds no tiktoken ranks"):
        read_tokenizer(tmp_path)


CODES = {"tokenizer": "glm", "frame_rate_hz": 12.5, "codebook_size": 3}


def speaking(text, codes, **more):
    data = json.loads(text.model)
    tokens = {f"<|audio_{i}|>": id_ for i, id_ in enumerate(codes)} | more
    data["added_tokens"] += [
        {**data["added_tokens"][0], "content": name, "id": id_} for name, id_ in tokens.items()
    ]
    return TextTokenizer(json.dumps(data).encode())


def test_a_model_that_speaks_keeps_its_ids(text, tmp_path):
    assert spoken_vocab(text, CODES, size=400) is None, "it has no codes"
    spoken = speaking(text, [320, 321, 322])
    vocab = spoken_vocab(spoken, CODES, size=330)
    assert vocab.size == 330 and vocab.speech_offset == 320 and vocab.codebook_size == 3
    assert vocab["eos"] == 300 and vocab["user"] == 301 and vocab["begin_of_speech"] == 302
    others = [vocab[name] for name in SPECIALS if vocab[name] > 302]
    assert sorted(others) == list(range(303, 303 + 6)), "what it lacks lies in the gap"
    write_tokenizer(tmp_path, extend_tokenizer(spoken.model, vocab), length=64, eos="<|endoftext|>")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == 330
    assert theirs("<|audio_2|><|asr|><|user|>").input_ids == [322, vocab["asr"], 301]


@pytest.mark.parametrize(
    "codes, more, told",
    [
        ([320, 321], {}, "has 2 codes from id 320 on; --run has a codebook of 3"),
        ([320, 322, 323], {}, "--run has a codebook of 3"),
        ([305, 306, 307], {}, "are all taken"),
        ([320, 321, 322], {"<|more|>": 323}, "are all taken"),
        ([328, 329, 330], {}, "are all taken"),
    ],
    ids=str,
)
def test_codes_that_do_not_fit_are_refused(text, codes, more, told):
    with pytest.raises(UserError, match=told):
        spoken_vocab(speaking(text, codes, **more), CODES, size=330)
