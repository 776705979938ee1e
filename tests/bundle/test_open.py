"""Any training is a bundle: its mel settings, its vocabularies, and what an older one lacks."""

import shutil

import numpy as np
import pytest
from tiny_stages import MEL, TEXTS, command

from speechlm_jax import artifacts
from speechlm_jax.audio.recordings import Features
from speechlm_jax.bundle.open import open_bundle, open_codes, open_vocab
from speechlm_jax.codes import read_codes, read_identity
from speechlm_jax.errors import UserError
from speechlm_jax.experiment import runs

pytestmark = pytest.mark.filterwarnings("ignore")


def test_recordings_are_read_by_the_mel_settings_that_the_tokenizer_was_trained_on(stages):
    """40 bins and a fixed floor: what `tokenize` reads is what the training has read."""
    features, bundle = Features(stages / "features"), open_bundle(stages / "tok")
    assert bundle.mel == MEL == features.mel_config
    told = runs.load_reader(stages / "tok")[0].config.mel
    assert told == MEL
    trained_on = bundle.reader.mels_to_codes([features.mel(i) for i in range(len(features))])
    read = {row["id"]: row["codes"] for row in read_codes(stages / "codes")}
    for row, codes in zip(features.rows, trained_on, strict=True):
        # The features are kept in 16 bits: a frame on the edge of two codes may fall to the other.
        assert len(codes) == len(read[row["id"]])
        assert np.mean(np.array(read[row["id"]]) == codes) > 0.8


def test_a_tokenizer_of_before_has_its_settings_from_what_its_checkpoint_tells(stages, tmp_path):
    old = tmp_path / "tok"
    shutil.copytree(stages / "tok", old)
    path = old / "checkpoints/00000002/meta.json"
    meta = artifacts.read_json(path)
    del meta["config"]["model"]["mel"]
    artifacts.write_json(path, meta)
    assert runs.trained_mel(old) == MEL
    assert runs.trained_codes(old) == runs.trained_codes(stages / "tok"), "codes keep their name"
    meta["described"] = {}
    artifacts.write_json(path, meta)
    with pytest.raises(UserError, match="did not keep its mel settings"):
        runs.trained_mel(old)


def test_a_training_keeps_its_vocabularies_beside_its_checkpoints(stages):
    codes = read_identity(stages / "codes")
    for name in ("tok", "tts", "lm"):
        vocab, text = open_vocab(stages / name)
        assert vocab.codes == codes and not vocab.voices
        assert [text.decode(text.encode(line)) for line in TEXTS] == [*TEXTS]
        assert open_codes(stages / name) == codes == open_codes(stages / "codes")
    assert artifacts.read_json(stages / "tts/vocab.json")["voices"] == ["Ann", "Ben"]
    assert open_bundle(stages / "tts").voices == ("Ann", "Ben")
    assert artifacts.read_json(stages / "decoder/voices.json") == ["Ann", "Ben"]
    assert open_vocab(stages / "lm")[0] == open_vocab(stages / "tok")[0]


def test_a_training_of_before_tells_its_vocabulary_and_names_what_it_lacks(stages, tmp_path):
    shutil.copytree(stages / "tts", tmp_path / "tts")
    for name in ("vocab.json", "text.model"):
        (tmp_path / "tts" / name).unlink()
    bundle = open_bundle(tmp_path / "tts")
    assert bundle.voiced_vocab == open_bundle(stages / "tts").voiced_vocab
    with pytest.raises(UserError, match="tts: has no text vocabulary; copy the one"):
        bundle.say("cat")
    command("evaluate", stages / "lm", "--out", tmp_path / "figures")
