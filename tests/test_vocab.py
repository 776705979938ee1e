"""Every id belongs to one range, codes <-> ids are inverse, and the contract is fingerprinted."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from speechlm_jax.errors import UserError
from speechlm_jax.vocab import SPECIALS, Vocab

SMALL = Vocab(100, 64, 12.5, "text", "tokenizer", voices=("bob", "eve", "tom"))
MAPPED = dataclasses.replace(SMALL, mapped=(("bos", 1), ("eos", 2)))
LARGE = Vocab(151_552, 16_384, 12.5, "text", "tokenizer", num_spare=128)
VOCABS = pytest.mark.parametrize("vocab", [SMALL, MAPPED, LARGE], ids=["small", "mapped", "large"])


@VOCABS
def test_ranges_do_not_overlap_and_stand_in_the_order_of_the_contract(vocab):
    added = [vocab[name] for name in SPECIALS if name not in dict(vocab.mapped)]
    assert added == list(range(vocab.text_size, vocab.text_size + len(added)))
    assert vocab.voice_offset == vocab.text_size + len(added) + vocab.num_spare
    assert vocab.speech_offset == vocab.voice_offset + len(vocab.voices)
    assert vocab.speech_offset + vocab.codebook_size <= vocab.size
    assert vocab.size % vocab.pad_to_multiple == 0
    assert vocab.size - vocab.speech_offset - vocab.codebook_size < vocab.pad_to_multiple
    assert len(set(vocab.special_ids.values())) == len(SPECIALS)
    assert all(vocab[name] == id_ for name, id_ in vocab.mapped)


@VOCABS
def test_codes_and_ids_are_inverse(vocab):
    codes = np.arange(vocab.codebook_size, dtype=np.int32).reshape(2, -1)
    ids = vocab.codes_to_ids(codes)
    np.testing.assert_array_equal(vocab.ids_to_codes(ids), codes)
    assert ids.dtype == np.int32 and vocab.is_speech(ids).all()
    every = np.arange(vocab.size)
    np.testing.assert_array_equal(every[vocab.is_speech(every)], ids.ravel())
    assert ids.max() <= np.iinfo(vocab.id_dtype).max
    for shape in ((), (0,), (1, 2, 1)):
        zeros = vocab.codes_to_ids(np.zeros(shape, np.int32))
        assert (
            zeros.shape == vocab.ids_to_codes(zeros).shape == vocab.is_speech(zeros).shape == shape
        )


@pytest.mark.parametrize("code", [-1, 64])
def test_codes_outside_the_codebook_are_refused(code):
    with pytest.raises(ValueError, match=r"0\.\.63"):
        SMALL.codes_to_ids(np.array([0, code]))


@pytest.mark.parametrize("id_", [0, SMALL.speech_offset - 1, SMALL.speech_offset + 64])
def test_ids_that_are_not_speech_have_no_code(id_):
    with pytest.raises(ValueError, match="not a speech code"):
        SMALL.ids_to_codes(np.array([SMALL.speech_offset, id_]))


def test_text_ids_and_specials_do_not_move_when_speech_changes():
    grown = dataclasses.replace(SMALL, codebook_size=512, voices=tuple("abcdefgh"))
    assert grown.special_ids == SMALL.special_ids and grown.text_size == SMALL.text_size


def test_ids_are_stored_in_two_bytes_while_they_fit():
    fits = Vocab(65_536 - 128 - len(SPECIALS) - 64, 64, 12.5, "t", "s")
    assert fits.size == 65_536 and fits.id_dtype == np.uint16
    assert dataclasses.replace(fits, voices=("bob",)).id_dtype == np.uint32
    assert LARGE.id_dtype == np.uint32


@VOCABS
def test_allowed_holds_exactly_what_is_asked_for(vocab):
    text, speech = vocab.allowed("text"), vocab.allowed("speech", specials=("end_of_speech",))
    mapped = {id_ for _, id_ in vocab.mapped}
    assert set(text) == {*range(vocab.text_size)} - mapped
    np.testing.assert_array_equal(
        vocab.is_text(np.arange(-1, vocab.size))[1:], text.mask(vocab.size)
    )
    assert not vocab.is_text(np.array([-1, vocab.size])).any()
    assert set(speech) == {
        vocab["end_of_speech"],
        *range(vocab.speech_offset, vocab.speech_offset + vocab.codebook_size),
    }
    assert not len(vocab.allowed())


def test_every_voice_has_an_id_of_its_own():
    ids = [SMALL.voice_id(voice) for voice in SMALL.voices]
    assert ids == list(range(SMALL.voice_offset, SMALL.speech_offset))
    with pytest.raises(UserError, match="'zoe'.*3 voices"):
        SMALL.voice_id("zoe")


@pytest.mark.parametrize("mapped", [("bos", 100), ("bos", -1), ("begin", 3)])
def test_a_mapped_special_must_be_one_and_have_a_text_id(mapped):
    with pytest.raises(UserError, match=mapped[0]):
        dataclasses.replace(SMALL, mapped=(mapped,))


OTHER_VALUES: dict[str, Any] = {
    "text_size": 101,
    "codebook_size": 65,
    "frame_rate_hz": 25.0,
    "text_fingerprint": "other",
    "tokenizer_fingerprint": "other",
    "mapped": (("bos", 1),),
    "voices": ("bob", "eve"),
    "num_spare": 129,
    "pad_to_multiple": 256,
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Vocab)])
def test_every_field_is_part_of_the_contract(field):
    other = dataclasses.replace(SMALL, **{field: OTHER_VALUES[field]})
    assert other.fingerprint != SMALL.fingerprint
    with pytest.raises(UserError) as caught:
        SMALL.require_same(other, "the checkpoint", "the shards")
    message = str(caught.value)
    assert field in message and "the checkpoint" in message and "the shards" in message
    assert repr(OTHER_VALUES[field]) in message and "\n" not in message


@VOCABS
def test_json_and_back_is_the_same_vocabulary(vocab):
    again = Vocab.from_json(vocab.to_json())
    assert again == vocab and again.fingerprint == vocab.fingerprint
    vocab.require_same(again, "a", "b")
