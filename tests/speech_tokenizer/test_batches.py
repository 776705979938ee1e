"""Rows hold the clips that they say, whatever is joined; all batches of a bucket have one shape."""

import numpy as np
import pytest

from speechlm_jax.audio.augment import AugmentConfig
from speechlm_jax.speech_tokenizer.batches import TranscribedClips
from speechlm_jax.text import TextTokenizer

TEXTS = ["bob", "anna has a cat", "é", "a cat", "anna"]
TOKENIZER = TextTokenizer.train([*TEXTS, "bob"], kind="word")
CHOSEN = [4, 1, 2]
FRAMES = [40, 41, 30, 20, 52]


@pytest.fixture(scope="module")
def features(write_features, tmp_path_factory):
    rows = [
        {"id": f"{i}", "audio": f"{i}.wav", "text": text, "speaker": "xy"[i % 2]}
        for i, text in enumerate(TEXTS)
    ]
    return write_features(tmp_path_factory.mktemp("corpus") / "features", rows, FRAMES)


def read(batch, row):
    """The text of a row by its ids and by its bytes."""
    ids = batch["text_ids"][row, : batch["text_lengths"][row]]
    spelled = batch["bytes"][row, : batch["byte_lengths"][row]]
    return TOKENIZER.decode(ids.tolist()), bytes(spelled.astype(np.uint8)).decode()


def test_rows_hold_the_chosen_clips_and_their_transcripts(features):
    clips = TranscribedClips(features, CHOSEN, TOKENIZER)
    assert clips.lengths == [FRAMES[i] for i in CHOSEN]
    batch = clips.collate(64, np.array([0, 2, 0]), np.arange(3))
    assert batch["mel"].shape == (3, 64, 80) and batch["mel"].dtype == np.float32
    assert batch["mel_lengths"].tolist() == [52, 30, 52]
    for row, number in enumerate([4, 2, 4]):
        mel = batch["mel"][row]
        np.testing.assert_array_equal(mel[: FRAMES[number]], features.mel(number))
        assert not mel[FRAMES[number] :].any()
        assert read(batch, row) == (TEXTS[number], TEXTS[number])


def test_joined_clips_have_the_texts_of_one_speaker_in_order(features):
    augment = AugmentConfig(max_joined=3, seed=1)
    clips = TranscribedClips(features, [*range(5)], TOKENIZER, augment=augment)
    numbers, rows = np.arange(30) % 5, np.arange(30)
    batch = clips.collate(200, numbers, rows)
    joined = 0
    for row, number in enumerate(numbers):
        written, spelled = read(batch, row)
        assert written == spelled and TEXTS[number] in written
        mine = [text for i, text in enumerate(TEXTS) if i % 2 == number % 2]
        rest = written
        for text in sorted(mine, key=len, reverse=True):
            rest = rest.replace(text, "")
        assert not rest.strip(), "another speaker's text"
        joined += written not in mine
    assert joined > 5
    for name, array in clips.collate(200, numbers[7:9], rows[7:9]).items():
        np.testing.assert_array_equal(array, batch[name][7:9])  # by the row's number alone


def test_batches_of_a_bucket_have_one_shape(features):
    for augment in (None, AugmentConfig(max_joined=2)):
        clips = TranscribedClips(features, [*range(5)], TOKENIZER, augment=augment)
        batches = [clips.collate(120, np.array([n]), np.array([n])) for n in range(5)]
        assert len({tuple(array.shape for array in batch.values()) for batch in batches}) == 1


def test_no_clips_are_none(features):
    assert TranscribedClips(features, [], TOKENIZER).lengths == []
