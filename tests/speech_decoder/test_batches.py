"""Rows hold codes and the mel frames that these stand for; a clip without codes is left out."""

import numpy as np
import pytest

from speechlm_jax.errors import UserError
from speechlm_jax.speech_decoder.batches import CodedClips

FRAMES = [17, 8, 30, 12, 9]
CODES = {"0": [1, 2], "1": [3], "2": [], "3": [4], "4": [5]}
SPEAKERS = ["zoe", "anna", "max", "zoe", "eva"]


@pytest.fixture(scope="module")
def features(write_features, tmp_path_factory):
    rows = [{"id": f"{i}", "speaker": speaker} for i, speaker in enumerate(SPEAKERS)]
    return write_features(tmp_path_factory.mktemp("corpus") / "features", rows, FRAMES)


def make(features, chosen, codes=CODES):
    rows = {name: {"codes": row} for name, row in codes.items()}
    return CodedClips(features, chosen, rows, mel_frames_per_code=8)


def test_rows_hold_codes_voices_and_the_frames_of_the_codes(features):
    clips = make(features, [0, 1, 2, 3])
    assert clips.lengths == [16, 8, 8] and clips.voices == ["anna", "zoe"]
    batch = clips.collate(24, np.array([2, 0]), np.arange(2))
    assert batch["codes"].tolist() == [[4, 0, 0], [1, 2, 0]]
    assert batch["code_lengths"].tolist() == [1, 2] and batch["voices"].tolist() == [2, 2]
    assert batch["mel"].shape == (2, 24, 80)
    for mel, number, frames in zip(batch["mel"], [3, 0], [8, 16], strict=True):
        np.testing.assert_array_equal(mel[:frames], features.mel(number)[:frames])
        assert not mel[frames:].any()


def test_a_code_that_a_clip_ends_in_is_left_out(features):
    """17 mel frames have 3 codes where a last partial group has one, and 9 frames 2."""
    clips = make(features, [0, 1, 4], {"0": [1, 2, 9], "1": [3], "4": [5, 9]})
    assert clips.lengths == [16, 8, 8]
    assert clips.collate(16, np.array([0, 2]), np.arange(2))["codes"].tolist() == [[1, 2], [5, 0]]


def test_moments_are_those_of_the_chosen_clips_mel_frames(features):
    frames = np.concatenate([features.mel(i) for i in (1, 3)])
    mean, deviation = make(features, [1, 2, 3]).mel_moments()
    np.testing.assert_allclose([mean, deviation], [frames.mean(), frames.std()], rtol=1e-5)


def test_a_clip_that_the_codes_folder_lacks_is_named(features):
    with pytest.raises(UserError, match="no clip '3'"):
        make(features, [0, 3], {"0": [1]})


def test_no_clips_are_none(features):
    assert make(features, []).lengths == [] == make(features, [2]).lengths
