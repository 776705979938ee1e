"""Figures can be read back: by TensorBoard's own reader, and from metrics.jsonl after a crash."""

import json
import sys
import types

import pytest

from speechlm_jax.errors import UserError
from speechlm_jax.train.logs import ScalarLog, clock, drop_lines_after, logged_at


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


BROKEN = [
    '{"step": "a"}',
    '{"step": null}',
    "[1]",
    "[" * 5000,
    "1" * 5000,
    "\\u0000",
    "\xff",
    '{"st',
]


@pytest.mark.parametrize("broken", BROKEN, ids=range(len(BROKEN)))
def test_what_a_kill_or_a_full_disk_leaves_stops_no_run(tmp_path, broken):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(f'{{"step": 1, "loss": 2.0}}\n{broken}'.encode("latin-1"))
    assert logged_at(tmp_path, 1) == {"step", "loss"} and logged_at(tmp_path, 2) == set()
    drop_lines_after(path, 1)
    assert path.read_text() == '{"step": 1, "loss": 2.0}\n'
    assert logged_at(tmp_path / "none", 1) == set()


class Wandb(types.ModuleType):
    """A stand-in with the service's names; the real one was not run."""

    class Error(Exception):
        pass

    def __init__(self, refuses=""):
        super().__init__("wandb")
        self.refuses, self.given, self.logged = refuses, [], []

    def init(
        self, entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None,
        config=None, config_exclude_keys=None, config_include_keys=None, allow_val_change=None,
        group=None, job_type=None, mode=None, force=None, reinit=None, resume=None,
    ):  # fmt: skip
        if self.refuses:
            raise self.Error(self.refuses)
        self.given.append((project, id, name, resume, config, allow_val_change))
        return self

    def log(self, data, step=None):
        self.logged.append((step, data))

    def finish(self):
        self.logged.append("finished")


def test_weights_and_biases_gets_a_run_of_its_own_and_its_config(tmp_path, monkeypatch):
    service = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", service)
    for user in ("one", "other", "one"):
        config = {"class": "TrainConfig", "total_steps": 4}
        log = ScalarLog(tmp_path / user / "runs/a", wandb_project="speech", config=config)
        log.write(1, {"loss": 2.0})
        log.close()
    ids = [given[1] for given in service.given]
    assert ids[0] == ids[2] != ids[1] and all(map(str.isalnum, ids))
    assert {(given[0], *given[2:4]) for given in service.given} == {("speech", "a", "allow")}
    assert all(given[4] == config and given[5] for given in service.given)
    assert service.logged == [(1, {"loss": 2.0}), "finished"] * 3
    (tmp_path / "one/runs/a/wandb_id").write_text("../")
    ScalarLog(tmp_path / "one/runs/a", wandb_project="speech").close()
    assert service.given[-1][1].isalnum()


def test_weights_and_biases_refuses_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Wandb(refuses="api_key not configured\nsee ..."))
    with pytest.raises(UserError, match="wandb_project=speech: api_key not configured$"):
        ScalarLog(tmp_path, wandb_project="speech")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="wandb is not installed"):
        ScalarLog(tmp_path, wandb_project="speech")


def test_clock():
    assert [clock(x) for x in (5.4, 65.0, 3725.0, -1.0)] == ["0:05", "1:05", "1:02:05", "0:00"]
