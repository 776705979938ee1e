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


PLAIN = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": []}
ADDED = {
    "id": 1, "content": "x", "single_word": False, "lstrip": False, "rstrip": False,
    "normalized": False, "special": True,
}  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"{",
        b"[]",
        b"[" * 100_000,
        {},
        {**PLAIN, "model": {"type": "BPE", "merges": []}},
        {**PLAIN, "model": {"type": "BPE", "vocab": {"a": "0"}, "merges": []}},
        {**PLAIN, "model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}},
        {**PLAIN, "added_tokens": None},
        {**PLAIN, "added_tokens": ["x"]},
        {**PLAIN, "added_tokens": [{**ADDED, "id": "1"}]},
        {**PLAIN, "added_tokens": [{**ADDED, "id": -1}]},
        {**PLAIN, "added_tokens": [{**ADDED, "id": 2**40}]},
        {**PLAIN, "added_tokens": [{**ADDED, "content": 3}]},
        b'{"version": null1.0, "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}',
        b"[" * 100_000,
        {**PLAIN, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    ],
    ids=range(18),
)
def test_a_broken_tokenizer_json_is_named(tmp_path, data):
    """The last one is a panic of the library's Rust code."""
    data = data if isinstance(data, bytes) else json.dumps({"version": "1.0", **data}).encode()
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(UserError, match="tokenizer.json: is no text vocabulary") as told:
        read_tokenizer(tmp_path)
    assert "\n" not in str(told.value) and len(str(told.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    "added", [[], {"x": {"content": "a"}}, {"300": {}}, {"300": {"content": 3}}, {"300": "a"}],
    ids=str,
)  # fmt: skip
def test_broken_added_tokens_of_tiktoken_are_named(glm_folder, tmp_path, added):
    (tmp_path / "tokenizer.model").write_bytes((glm_folder / "tokenizer.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    with pytest.raises(UserError, match="added_tokens_decoder is no object of ids and tokens"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "lines, told",
    [
        (["YQ== 0"], "a byte has none"),
        ([f"{base64.b64encode(bytes([b])).decode()} {b}" for b in range(256)]
         + [f"{base64.b64encode(b'a' * 2_000).decode()} 256"], "more than 1024 bytes"),
        (["YQ== " + "9" * 5_000], "holds no tiktoken ranks"),
        (["YQ=="], "holds no tiktoken ranks"),
    ],
    ids=range(4),
)  # fmt: skip
def test_broken_ranks_are_named(tmp_path, lines, told):
    (tmp_path / "tokenizer.model").write_text("\n".join(lines))
    with pytest.raises(UserError, match=told):
        read_tokenizer(tmp_path)
