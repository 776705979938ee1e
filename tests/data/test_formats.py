"""How documents are written in ids: markers, the side with the loss, and reading them back."""

import numpy as np
import pytest

from speechlm_jax.data.formats import Writer, example_to_document
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
