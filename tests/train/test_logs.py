"""Figures can be read back: by TensorBoard's own reader, and from metrics.jsonl after a crash."""

import json
import sys
import types

from speechlm_jax.train.logs import ScalarLog, clock, drop_lines_after


def test_tensorboard_reads_the_event_files(tmp_path, monkeypatch):
    # with this module present, TensorBoard does without TensorFlow, whose import takes seconds
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", types.ModuleType("notf"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = ScalarLog(tmp_path)
    for step in (1, 2, 3, 4):
        first.write(step, {"loss": step / 8, "bad": float("nan")})
    first.close()
    second = ScalarLog(tmp_path, after_step=2)
    second.write(3, {"loss": 9.0})
    second.close()
    reader = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    assert [(e.step, e.value) for e in reader.Scalars("loss")] == [(1, 0.125), (2, 0.25), (3, 9.0)]
    assert reader.Tags()["scalars"] == ["loss"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.125), (2, 0.25), (3, 9.0)]


def test_lines_after_a_step_and_broken_lines_go(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "a/b": 1}\nnull\n{"step": 3}\n{"step": 2, "lo')
    drop_lines_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2, "a/b": 1}\n'


def test_clock():
    assert [clock(x) for x in (5.4, 65.0, 3725.0, -1.0)] == ["0:05", "1:05", "1:02:05", "0:00"]
