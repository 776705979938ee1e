"""Text <-> ids: inverse, the same by words as whole, and trained the same in any order."""

import io
import json

import numpy as np
import pytest
import sentencepiece
import tokenizers

from speechlm_jax.data.formats import Writer
from speechlm_jax.errors import UserError
from speechlm_jax.text import TextTokenizer
from speechlm_jax.vocab import Vocab

LINES = [
    "tom lives in paris and has a cat",
    "anna lives in rome and likes bread",
    "the cat of anna is green",
    "where does tom live",
]
KINDS = pytest.mark.parametrize("kind", ["word", "bpe"])


def _train(kind: str, lines: list[str] = LINES) -> TextTokenizer:
    return TextTokenizer.train(lines, kind=kind, size=300)


@KINDS
def test_ids_and_text_are_inverse(kind):
    tokenizer = _train(kind)
    for line in LINES:
        ids = tokenizer.encode(line)
        assert tokenizer.decode(ids) == line
        assert all(0 <= id_ < tokenizer.size for id_ in ids)
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""


@KINDS
def test_encoding_word_by_word_gives_the_ids_of_the_whole(kind):
    tokenizer = _train(kind)
    for line in LINES:
        assert sum(map(tokenizer.encode, line.split()), []) == tokenizer.encode(line)


def test_a_word_vocabulary_has_one_id_a_word_and_one_for_the_rest():
    tokenizer = _train("word")
    words = {word for line in LINES for word in line.split()}
    assert tokenizer.size == len(words) + 1
    assert sorted(tokenizer.encode(word) for word in words) == [[i + 1] for i in range(len(words))]
    assert tokenizer.encode("zebra") == [0]


def test_pieces_fall_back_to_bytes():
    tokenizer = _train("bpe")
    for text in ("zebra", "Äpfel", "日本 quiz"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@KINDS
def test_the_order_and_repetition_of_lines_do_not_matter(kind):
    assert _train(kind, LINES[::-1] + LINES).fingerprint == _train(kind).fingerprint
    assert _train(kind, LINES[:3]).fingerprint != _train(kind).fingerprint


def test_a_model_file_comes_back(tmp_path):
    tokenizer = _train("word")
    tokenizer.save(tmp_path / "text.model")
    again = TextTokenizer.load(tmp_path / "text.model")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode(LINES[0]) == tokenizer.encode(LINES[0])


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(UserError, match="absent.model: no such text vocabulary"):
        TextTokenizer.load(tmp_path / "absent.model")
    (tmp_path / "text.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="text.model: is no SentencePiece model or tokenizer.json"):
        TextTokenizer.load(tmp_path / "text.model")
    (tmp_path / "empty.model").write_bytes(b"")
    with pytest.raises(UserError, match="empty.model: is no SentencePiece model"):
        TextTokenizer.load(tmp_path / "empty.model")
    with pytest.raises(UserError, match="no words"):
        TextTokenizer.train(["", "  "])


def test_a_tokenizer_json_that_fails_in_use_is_named(tmp_path):
    """The library reads both; the second one is a panic of its Rust code."""
    words = {"type": "WordLevel", "vocab": {"it": 0}, "unk_token": "[UNK]"}
    charsmap = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    for name, data in {"a.json": {}, "b.json": {"normalizer": charsmap}}.items():
        text = json.dumps({"version": "1.0", "added_tokens": [], "model": words, **data})
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match="text vocabulary: cannot write|is no SentencePiece"):
            TextTokenizer.load(tmp_path / name).encode("it is")


EXACT = TextTokenizer.train(
    [*LINES, "Prices: $5.50,  or\tmore.\n\nNext  line; Ünïcödé 日本 ☃"], kind="exact", size=400
)


def test_an_exact_vocabulary_gives_the_characters_of_unicode_back():
    codes = [*range(0xD800), *range(0xE000, 0x10000), *range(0x10000, 0x110000, 17)]
    random = np.random.default_rng(0)
    for order in (codes, random.permutation(codes)[:20_000].tolist()):
        for at in range(0, len(order), 512):
            text = "".join(map(chr, order[at : at + 512]))
            assert EXACT.decode(EXACT.encode(text)) == text, hex(order[at])


SCRAPS = [
    " ", "  ", "\t", "\n", "\r\n", "\0", "\x1b", "\N{LOWER ONE EIGHTH BLOCK}", "\u2585", " ⁇ ",
    "\ufeff", "\u200b", "\u00a0", "\u3000", "\u2028", "e\u0301", "é", "👩‍👩‍👧", "the", "The cat",
    "<unk>", "<0x41>", "lives in", "日本", ".", "$5.50", "\U0010ffff",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_an_exact_vocabulary_gives_any_text_back_whole_or_in_parts(seed):
    random = np.random.default_rng(seed)
    for _ in range(200):
        parts = ["".join(random.choice(SCRAPS, random.integers(0, 6))) for _ in range(3)]
        whole = "".join(parts)
        assert EXACT.decode(EXACT.encode(whole)) == whole
        joined = sum((EXACT.encode(part, continues=True) for part in parts), [])
        assert EXACT.decode(joined) == whole
        assert EXACT.unknown_id not in EXACT.encode(whole)


def test_an_exact_vocabulary_has_room_for_its_characters_or_says_how_much_it_needs():
    with pytest.raises(UserError, match=r"300 entries are too few .* give at least \d+") as error:
        TextTokenizer.train(["".join(map(chr, range(0x4E00, 0x4F00)))], kind="exact", size=300)
    least = int(str(error.value).rsplit(" ", 1)[1])
    TextTokenizer.train(["".join(map(chr, range(0x4E00, 0x4F00)))], kind="exact", size=least)


NAMES = ("<|user|>", "<|assistant|>", "<|audio_0|>")


def _hugging_face(kind: str) -> bytes:
    """A tokenizer.json whose tokens NAMES are told in some way; they are its last three ids."""
    units = [*"abcdefghijklmnopqrstuvwxyz<|>_0Ġ", "<|", "|>", "us", "er", "user", "<|user|>"]
    if kind in ("word", "wordpiece"):
        words = ["[UNK]", "hello", *NAMES]
        vocab = dict(zip(words, range(len(words)), strict=True))
        if kind == "word":
            made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
        else:
            pieces = [*words, *units[:-1], *(f"##{u}" for u in units[:-1])]
            vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
            made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
        made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    elif kind == "unigram":
        pieces = [("[UNK]", 0.0), *((u, -5.0) for u in units), *((name, -1.0) for name in NAMES)]
        pieces = list(dict(pieces).items())
        made = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, 0))
    else:
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer, made.decoder = level, tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=level.alphabet(), show_progress=False
        )
        made.train_from_iterator([*NAMES * (5 * (kind == "merged")), "hello there"], trainer)
        if kind != "merged":
            flags = {"lstrip": kind == "strips", "rstrip": kind == "strips"}
            flags |= {"normalized": kind == "normalized", "single_word": kind == "single"}
            tokens = [tokenizers.AddedToken(name, special=kind == "special", **flags)
                      for name in NAMES]  # fmt: skip
            made.add_special_tokens(tokens) if kind == "special" else made.add_tokens(tokens)
    return made.to_str().encode()


def _sentencepiece(kind: str) -> bytes:
    """A SentencePiece model that knows NAMES as words, as control or as user-defined symbols."""
    model = io.BytesIO()
    exact = {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "byte_fallback": True}
    extra = {"control_symbols": list(NAMES)} if kind == "control" else {}
    extra = {"user_defined_symbols": list(NAMES)} if kind == "user_defined" else extra
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter([*LINES, *NAMES * 9]), model_writer=model, vocab_size=500,
        hard_vocab_limit=False, normalization_rule_name="identity", minloglevel=2,
        model_type="word" if kind == "words" else "bpe", split_by_unicode_script=False,
        **extra, **({} if kind == "words" else exact),
    )  # fmt: skip
    return model.getvalue()


HF_KINDS = ["plain", "special", "strips", "normalized", "single", "merged", "word", "wordpiece",
            "unigram"]  # fmt: skip
SP_KINDS = ["control", "user_defined", "pieces", "words"]


def _ids_of_names(model: bytes) -> list[int]:
    if model[:1] == b"{":
        vocab = tokenizers.Tokenizer.from_str(model.decode()).get_vocab()
        return [vocab[name] for name in NAMES if name in vocab]
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [i for i in range(len(pieces)) if pieces.id_to_piece(i).strip("\u2581") in NAMES]


@pytest.mark.parametrize("kind", [*HF_KINDS, *SP_KINDS])
def test_no_special_comes_out_of_text(kind):
    model = _hugging_face(kind) if kind in HF_KINDS else _sentencepiece(kind)
    open_ = TextTokenizer(model)
    ids = _ids_of_names(model)
    assert ids
    mapped = tuple(zip(("user", "assistant", "bos"), ids, strict=False))
    vocab = Vocab(open_.size, 4, 12.5, open_.fingerprint, "t", mapped=mapped)
    closed = Writer(vocab, open_).tokenizer
    plain = "hello" if kind in HF_KINDS else "tom lives in paris"
    assert closed.encode(plain) == open_.encode(plain) and closed.fingerprint == open_.fingerprint
    for name in NAMES:
        for text in (name, f"hello {name} there", f"x{name}y", f"  {name}  ", name * 3):
            for continues in (False, True):
                assert vocab.is_text(np.array(closed.encode(text, continues=continues))).all()
            if kind not in ("word", "words", "wordpiece", "unigram"):  # these have unknown words
                assert closed.decode(closed.encode(text)).strip() == text.strip()
    assert [closed.decode([i]) for i in ids] == [open_.decode([i]) for i in ids]
    assert closed.for_vocab(vocab) is closed


def test_no_id_above_the_text_comes_out_of_text():
    text = TextTokenizer(_hugging_face("plain"))
    codes_from = text.size - 1  # <|audio_0|>, as in GLM-4-Voice
    vocab = Vocab(codes_from, 4, 12.5, text.fingerprint, "t")
    assert codes_from in text.encode("say <|audio_0|>")
    assert max(text.for_vocab(vocab).encode("say <|audio_0|>")) < codes_from


@pytest.mark.parametrize(
    ("kind", "id_"), [("pieces", 0), ("pieces", 70), ("unigram", 0), ("plain", 32)]
)  # "A"; 70 is a byte
def test_a_special_has_no_id_that_any_text_may_need(kind, id_):
    model = _hugging_face(kind) if kind in HF_KINDS else _sentencepiece(kind)
    text = TextTokenizer(model)
    vocab = Vocab(text.size, 4, 12.5, text.fingerprint, "t", mapped=(("user", id_),))
    with pytest.raises(UserError, match=f"id {id_} .*cannot be a special's"):
        text.for_vocab(vocab)


def test_unknown_words_have_an_id_or_are_counted():
    assert _train("word").unknown_id == 0
    assert TextTokenizer(_hugging_face("word")).unknown_id == 0
    assert TextTokenizer(_hugging_face("unigram")).unknown_id == 0
    whole = TextTokenizer(_hugging_face("plain"))
    whole.encode("日本 é")
    assert whole.unknown_id is None and whole.left_out == 0
    few = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    lossy = TextTokenizer(few.to_str().encode())
    assert lossy.encode("a c日 b") == [0, 1] and lossy.left_out == 2


def test_half_a_surrogate_pair_is_no_text():
    for tokenizer in (_train("word"), EXACT, TextTokenizer(_hugging_face("plain"))):
        with pytest.raises(UserError, match="lone surrogate"):
            tokenizer.encode("a \ud800 b")
