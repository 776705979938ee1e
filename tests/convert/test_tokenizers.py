"""Tiktoken ranks against tiktoken itself; every id of the joint vocabulary in `transformers`."""

import base64
import json

import pytest

from speechlm_jax.convert.companions import Companions
from speechlm_jax.convert.tokenizers import SPLIT, extend_tokenizer, read_tokenizer, token_of
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


def opened(folder, text, vocab):
    """The extended tokenizer as `transformers` opens it."""
    extended = extend_tokenizer(text.model, vocab)
    (folder / "tokenizer.json").write_bytes(extended)
    eos = (token_of(extended, vocab["eos"]), vocab["eos"])
    Companions().of_export(length=64, eos=eos).write(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_transformers_reads_every_id_of_the_joint_vocabulary(text, vocab, tmp_path):
    theirs = opened(tmp_path, text, vocab)
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
    data["added_tokens"][0]["content"] = "<|audio_3|>"
    with pytest.raises(UserError, match=r"has a token <\|audio_3\|> of its own, with id 300"):
        extend_tokenizer(json.dumps(data).encode(), vocab)


def test_what_holds_no_vocabulary_is_named(tmp_path):
    with pytest.raises(UserError, match="has neither tokenizer.json nor tokenizer.model"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0e\x00not ranks")
    with pytest.raises(UserError, match="holds no tiktoken ranks"):
        read_tokenizer(tmp_path)
