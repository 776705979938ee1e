"""Properties of speechlm_jax.evals.formats."""

import numpy as np
import pytest


def test_a_change_of_modality_is_marked_and_its_absence_is_not(formats):
    vocab, text, codes = formats.vocab, "it is", [3, 5]
    written, spoken = formats.text(text), formats.speech(codes)
    begin, end = vocab["begin_of_speech"], vocab["end_of_speech"]
    assert formats.prompt(text, then="text") == written
    assert formats.prompt(text, then="speech") == [*written, begin]
    assert formats.prompt(codes, then="speech") == [begin, *spoken]
    assert formats.prompt(np.array(codes), then="text") == [begin, *spoken, end]


def test_round_trips(formats):
    assert formats.ids_to_text(formats.continuation("it is paris")) == "it is paris"
    codes = np.array([0, 15])
    assert formats.vocab.ids_to_codes(np.array(formats.continuation(codes))).tolist() == [0, 15]


def test_ids_that_are_not_text_are_left_out(formats):
    ids = [*formats.text("it"), formats.vocab["eos"], *formats.speech([1]), *formats.text("is")]
    assert formats.ids_to_text(ids) == "it is"
    with pytest.raises(ValueError, match="outside"):
        formats.speech([16])
