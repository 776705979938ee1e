"""Codes of a corpus: those of each clip alone, whatever interrupts their making."""

import numpy as np
import pytest

from speechlm_jax import artifacts
from speechlm_jax.audio.mel_config import MelConfig
from speechlm_jax.audio.recordings import BAD, FEATURES_KIND, MELS, ROWS, Features
from speechlm_jax.codes import CODES, CodesIdentity
from speechlm_jax.jobs.commit import SHARDS
from speechlm_jax.speech_tokenizer import encode_corpus
from speechlm_jax.speech_tokenizer.encode_corpus import features_to_codes
from speechlm_jax.speech_tokenizer.reading import Transcriber

CLIPS, MELS_A_CODE = 10, 8


class MeanReader(Transcriber):
    """A reader without a model: a code is the mean of its mel frames; fails at one of its calls."""

    def __init__(self, config, fail_at=None):
        self.config, self.calls, self.fail_at = config, 0, fail_at

    def mels_to_codes(self, mels):
        self.calls += 1
        if self.calls - 1 == self.fail_at:
            raise KeyboardInterrupt
        cut = [mel[: len(mel) // MELS_A_CODE * MELS_A_CODE] for mel in mels]
        return [mel.reshape(-1, MELS_A_CODE * 6).mean(1).astype(np.int32) for mel in cut]


@pytest.fixture
def features(tmp_path, monkeypatch):
    monkeypatch.setattr(encode_corpus, "CLIPS_PER_CALL", 3)
    folder = tmp_path / "features"
    lengths = np.random.default_rng(0).integers(0, 60, CLIPS)
    stops = np.cumsum(lengths).tolist()
    rows = [
        {"id": f"clip {i}", "text": "\u00e9", "kind": "odd" if i % 2 else "even",
         "start": stop - int(length), "stop": stop}
        for i, (stop, length) in enumerate(zip(stops, lengths, strict=True))
    ]  # fmt: skip
    artifacts.write_jsonl(folder / ROWS, rows)
    artifacts.write_jsonl(folder / BAD, [])
    mels = np.arange(stops[-1])[:, None] * np.ones(6)
    np.save(folder / MELS, mels.astype(np.float16), allow_pickle=False)
    artifacts.write_manifest(
        folder, FEATURES_KIND, inputs={}, config={"mel": MelConfig(num_mels=6)},
        files=[MELS, ROWS, BAD],
    )  # fmt: skip
    return Features(folder)


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def encode(features, reader, out, **given):
    return features_to_codes(features, reader, out, identity=CodesIdentity("t", 12.5, 32), **given)


@pytest.mark.parametrize("fail_at", range(4))
def test_it_goes_on_at_the_call_that_was_interrupted(features, config, tmp_path, fail_at):
    whole = encode(features, MeanReader(config), tmp_path / "whole")
    stopped, again, none = MeanReader(config, fail_at), MeanReader(config), MeanReader(config, 0)
    out, done = tmp_path / "out", []
    with pytest.raises(KeyboardInterrupt):
        encode(features, stopped, out)
    assert not (out / artifacts.MANIFEST).exists()
    assert encode(features, again, out, progress=done.append) == whole
    assert again.calls == 4 - fail_at, "finished calls are not made again"
    assert done == [3, 3, 3, 1], "but count as progress"
    assert files(out) == files(tmp_path / "whole")
    (out / SHARDS).mkdir()  # killed before it was removed
    assert encode(features, none, out) == whole, "a finished folder is kept"
    assert files(out) == files(tmp_path / "whole") and not (out / SHARDS).exists()


def test_rows_are_those_of_the_features_and_their_codes(features, config, tmp_path):
    manifest = encode(features, MeanReader(config), tmp_path, keep=lambda row: row["kind"] == "odd")
    made = list(artifacts.read_jsonl(tmp_path / CODES))
    assert [row["id"] for row in made] == [f"clip {i}" for i in range(1, CLIPS, 2)]
    assert made[0].keys() == {"id", "text", "kind", "codes"} and made[0]["text"] == "\u00e9"
    for row, number in zip(made, range(1, CLIPS, 2), strict=True):
        assert len(row["codes"]) == features.lengths[number] // MELS_A_CODE
    assert manifest.counts == {"clips": 5, "codes": sum(len(row["codes"]) for row in made)}
    assert manifest.extra["tokenizer"] == "t" and artifacts.verify(tmp_path) == []


def test_other_clips_or_another_tokenizer_are_made_anew(features, config, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        encode(features, MeanReader(config, fail_at=2), tmp_path)
    fewer = MeanReader(config)
    made = encode(features, fewer, tmp_path, keep=lambda row: row["kind"] == "even")
    assert fewer.calls == 2 and made.counts["clips"] == 5
    nothing = encode(features, MeanReader(config), tmp_path, keep=lambda row: False)
    assert nothing.counts == {"clips": 0, "codes": 0} and (tmp_path / CODES).read_bytes() == b""
    other = MeanReader(config)
    features_to_codes(features, other, tmp_path, identity=CodesIdentity("u", 12.5, 32))
    assert other.calls == 4
