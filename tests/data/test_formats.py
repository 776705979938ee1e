"""How documents are written in ids: markers, the side with the loss, and reading them back."""

import io

import numpy as np
import pytest
import sentencepiece

from speechlm_jax.data.formats import Writer, example_to_document, segments_to_text
from speechlm_jax.text import TextTokenizer
from speechlm_jax.vocab import Vocab

TOKENIZER = TextTokenizer.train(["anna lives in paris", "bob has a cat"], kind="word")
VOCAB = Vocab(TOKENIZER.size, 64, 12.5, TOKENIZER.fingerprint, "tokenizer", voices=("anna", "bob"))
WRITER = Writer(VOCAB, TOKENIZER)
SPOKEN = "<begin_of_speech><3><3><63><end_of_speech>"


@pytest.mark.parametrize(
    ("example", "inputs", "targets"),
    [
        (WRITER.text("bob has a cat"), "", "bob has a cat <eos>"),
        (WRITER.speech([3, 3, 63]), "", f"{SPOKEN}<eos>"),
        (WRITER.asr([3, 3, 63], "bob"), f"<asr>{SPOKEN}", "bob <eos>"),
        (WRITER.tts([3, 3, 63], "bob"), "<tts> bob", f"{SPOKEN}<eos>"),
        (
            WRITER.voiced_tts(np.array([3, 3, 63]), "bob", "bob"),
            f"<id {VOCAB.voice_offset + 1}><tts> bob",
            f"{SPOKEN}<eos>",
        ),
        (
            WRITER.dialogue(
                [
                    {"role": "user", "segments": [{"codes": [3, 3, 63]}]},
                    {"role": "assistant", "segments": [{"text": "paris"}, {"codes": [3, 3, 63]}]},
                ]
            ),
            f"<user>{SPOKEN}<assistant>",
            f"paris {SPOKEN}<eos>",
        ),
        (
            WRITER.interleaved([{"text": "anna"}, {"codes": [3, 3, 63]}, {"text": "in paris"}]),
            "",
            f"anna {SPOKEN} in paris <eos>",
        ),
    ],
)
def test_formats(example, inputs, targets):
    assert WRITER.ids_to_text(example.inputs) == inputs
    assert WRITER.ids_to_text(example.targets) == targets
    document = example_to_document(example)
    assert document.ids.tolist() == [*example.inputs, *example.targets]
    assert document.loss_mask.tolist() == [False] * len(example.inputs) + [True] * len(
        example.targets
    )


def test_codes_survive():
    codes = np.random.default_rng(0).integers(0, 64, 40)
    ids = WRITER.speech(codes.tolist()).targets
    np.testing.assert_array_equal(VOCAB.ids_to_codes(ids[VOCAB.is_speech(ids)]), codes)


def test_codes_outside_the_codebook_are_refused():
    with pytest.raises(ValueError, match="codes outside"):
        WRITER.speech([1, 64])


WORDS = "Anna lives  in\nParis, don't you?\u3000東京 \u200bÉté\r\n".split("i")


def verbatim(parts):
    """Segments of a text: every other one is spoken."""
    return [
        {"text": part} if number % 2 == 0 else {"text": part, "said": "x", "codes": [3, 3, 63]}
        for number, part in enumerate(parts)
    ]


def byte_level():
    """A tokenizer.json that writes any text, made by the library that defines what one is."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs the `hf` extra")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet)
    made.train_from_iterator(["Anna lives in Paris"] * 9, trainer)
    return made


def exact_pieces():
    """A SentencePiece model that writes any text, and its library's processor."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["Anna lives in Paris"] * 9), model_writer=model, model_type="bpe",
        vocab_size=290, byte_fallback=True, hard_vocab_limit=False, minloglevel=2, unk_id=0,
        bos_id=-1, eos_id=-1, normalization_rule_name="identity", add_dummy_prefix=False,
        remove_extra_whitespaces=False,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.mark.parametrize("make", [byte_level, exact_pieces])
@pytest.mark.parametrize(
    "parts", [WORDS, ["  ", "a", " ", "b", "\n"], ["", "whole"], ["whole"], ["a ", "b"]]
)
def test_text_ids_and_what_is_spoken_are_the_document_again(make, parts):
    library = make()
    its_model = (
        library.to_str().encode() if make is byte_level else library.serialized_model_proto()
    )
    decode = library.decode if make is byte_level else library.DecodeIds
    tokenizer = TextTokenizer(its_model)
    vocab = Vocab(tokenizer.size, 64, 12.5, tokenizer.fingerprint, "tokenizer")
    segments = [s for s in verbatim(parts) if s["text"]]
    ids = Writer(vocab, tokenizer).interleaved(segments).targets[:-1]
    spoken = [segment["text"] for segment in segments if "codes" in segment]
    read, run = "", []
    for id_ in ids.tolist():
        if id_ < vocab.text_size:
            run.append(id_)
        elif id_ == vocab["begin_of_speech"]:
            read, run = read + decode(run) + spoken.pop(0), []
    assert read + decode(run) == "".join(parts) and not spoken
    assert segments_to_text(segments) == "".join(parts)


def test_segments_of_earlier_versions_are_read_with_a_blank_between():
    library = byte_level()
    tokenizer = TextTokenizer(library.to_str().encode())
    vocab = Vocab(tokenizer.size, 64, 12.5, tokenizer.fingerprint, "tokenizer")
    old = [{"text": "Anna"}, {"codes": [3], "text": "lives in"}, {"text": "Paris"}]
    ids = Writer(vocab, tokenizer).interleaved(old).targets
    assert library.decode(ids[ids < tokenizer.size].tolist()) == "Anna Paris"
    assert segments_to_text(old) == "Anna lives in Paris"


def test_words_of_a_word_vocabulary_have_the_ids_that_they_had():
    """White space is no part of them: the segments of both versions are the same rows."""
    spoken = {"codes": [3, 3, 63], "text": "lives in"}
    old = [{"text": "anna"}, spoken, {"text": "paris bob"}, spoken, spoken]
    new = [
        {"text": "anna "}, spoken | {"said": "lives in"}, {"text": " paris bob "},
        spoken | {"said": "lives in"}, {"text": " "}, spoken | {"said": "lives in"},
    ]  # fmt: skip
    assert WRITER.interleaved(old).targets.tolist() == WRITER.interleaved(new).targets.tolist()
    assert segments_to_text(old) == segments_to_text(new)


def make_writer(library):
    if library is None:
        return WRITER
    made = library()
    is_json = library is byte_level
    model = TextTokenizer(made.to_str().encode() if is_json else made.serialized_model_proto())
    return Writer(Vocab(model.size, 64, 12.5, model.fingerprint, "tokenizer"), model)


@pytest.mark.parametrize("library", [None, byte_level, exact_pieces])
@pytest.mark.parametrize("first", ["anna lives", [3, 63], np.array([5])])
@pytest.mark.parametrize("second", ["in paris", [7], np.array([0, 0])])
def test_a_prompt_and_what_follows_are_an_interleaved_document(library, first, second):
    """A change of modality is marked; speech that goes on stays in its span."""
    writer = make_writer(library)
    then = "text" if isinstance(second, str) else "speech"
    ids = [*writer.prompt(first, then=then), *writer.continuation(second)]
    ids += [writer.vocab["end_of_speech"]] if then == "speech" else []
    segments = [
        {"text": x} if isinstance(x, str) else {"codes": np.array(x)} for x in (first, second)
    ]
    if not any("text" in segment for segment in segments):
        segments = [{"codes": np.array([*first, *second])}]
    assert [*ids, writer.vocab["eos"]] == writer.interleaved(segments).targets.tolist()


def test_a_voiced_prompt_is_the_beginning_of_its_document():
    example = WRITER.voiced_tts([3, 63], "bob has", "anna")
    prompt = WRITER.voiced_tts_prompt("bob has", "anna")
    assert prompt == [*example.inputs, *example.targets][: len(prompt)]
    assert WRITER.ids_to_text(prompt[-1:]) == "<begin_of_speech>"


def test_text_is_read_from_among_other_ids():
    ids = [*WRITER.continuation("bob"), VOCAB["eos"], *WRITER.continuation([1])]
    assert WRITER.decode_text([*ids, *WRITER.continuation("has")]) == "bob has"
    assert WRITER.decode_text(WRITER.continuation([3])) == WRITER.decode_text([]) == ""
    codes = np.array([0, 63])
    assert VOCAB.ids_to_codes(np.array(WRITER.continuation(codes))).tolist() == [0, 63]
    with pytest.raises(ValueError, match="outside"):
        WRITER.continuation([64])
