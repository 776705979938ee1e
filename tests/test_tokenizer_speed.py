"""The benchmark of the tokenizer's speed: every side does the same work, and ratios are paired."""

import json
import sys
from pathlib import Path

import numpy as np

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import tokenizer_speed  # noqa: E402

sys.path.remove(str(BENCHMARKS))


def test_sides_make_the_same_frames(capsys):
    sides = tokenizer_speed.log_mel(tokenizer_speed.WHISPER)
    ours = sides["ours"]()
    log = sides["librosa"]()[:, : len(ours)].T
    np.testing.assert_allclose(ours, (np.maximum(log, log.max() - 8) + 4) / 4, atol=2e-4)
    if "transformers" in sides:
        theirs = sides["transformers"]().input_features[0].T
        np.testing.assert_allclose(ours, theirs, atol=2e-4)
    tokenizer_speed.main(["--turns", "1"])
    line = json.loads(capsys.readouterr().out)
    assert line["times_ours"].keys() == sides.keys() - {"ours"}


def test_ratios_are_medians_over_turns(monkeypatch):
    clock = iter([0, 1, 1, 4, 4, 6, 6, 8])  # ours 1, theirs 3; then theirs 2, ours 2
    monkeypatch.setattr(tokenizer_speed.time, "perf_counter", lambda: next(clock))
    found = tokenizer_speed.compare({"ours": lambda: 0, "theirs": lambda: 0}, turns=2)
    assert found["median_seconds"] == {"ours": 1.5, "theirs": 2.5}
    assert found["times_ours"] == {"theirs": 2.0}
