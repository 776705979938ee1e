"""Damage is noticed, other meshes are served, other models are refused, and old checkpoints go."""

import dataclasses
import functools
import itertools
import json
import logging
import os
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_stage import assert_same, make_stage

from speechlm_jax.errors import UserError
from speechlm_jax.sharding import MeshConfig, make_mesh
from speechlm_jax.train import checkpoint_folder, checkpoints
from speechlm_jax.train.checkpoint_folder import Keep, Meta
from speechlm_jax.train.checkpoints import KEEP, CheckpointWriter
from speechlm_jax.train.optimizer import OptimizerConfig, make_optimizer
from speechlm_jax.train.state import TrainState, init_state, make_layout

OPTIMIZER = make_optimizer(OptimizerConfig(warmup_steps=0), total_steps=10)


def meta(step, wall_seconds=1.5):
    timing = {"wall_seconds": wall_seconds, "cpu_seconds": 2.5}
    return Meta("toy", step, 8 * step, {"vocabulary": "v1"}, {"a": [1, None]}, "f" * 16, timing)


FOUR = MeshConfig(fsdp=2, tensor=2)


def layout(mesh_config=FOUR, stage=None):
    return make_layout(stage or make_stage(), OPTIMIZER, mesh=make_mesh(mesh_config))


@functools.cache
def fresh(seed=0):
    return init_state(make_stage(), OPTIMIZER, layout(), seed=seed)


def save(workdir, steps, keep=KEEP, seconds_a_step=0.0):
    writer = CheckpointWriter(workdir, keep=keep)
    for step in steps:
        writer.save(fresh(step), meta(step, 1.5 + seconds_a_step * step))
    writer.close()
    return [checkpoint_folder.step_folder(workdir / "checkpoints", step) for step in steps]


def biggest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_a_bit(folder):
    path = biggest(folder / "params")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(folder):
    path = biggest(folder / "optimizer")
    path.write_bytes(path.read_bytes()[:-7])


def lose_a_file(folder):
    biggest(folder / "params").unlink()


def spoil_checksums(folder):
    (folder / "checksums.json").write_text("{")


def put_a_folder_in_its_place(folder):
    path = biggest(folder / "params")
    path.unlink()
    path.mkdir()


def name_no_file(folder):
    checksums = json.loads((folder / "checksums.json").read_text())
    (folder / "checksums.json").write_text(json.dumps({**checksums, "a" * 5000: "", "\0": ""}))


def spoil_meta(folder):
    (folder / "meta.json").write_text((folder / "meta.json").read_text().replace("8", "9"))


@pytest.mark.parametrize(
    "spoil",
    [flip_a_bit, truncate, lose_a_file, put_a_folder_in_its_place, spoil_checksums, name_no_file]
    + [spoil_meta],
    ids=lambda f: f.__name__,
)
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, spoil, caplog):
    older, newer = save(tmp_path, [3, 8])
    assert checkpoints.latest_good(tmp_path) == newer
    spoil(newer)
    with caplog.at_level(logging.WARNING, logger="speechlm"):
        assert checkpoints.latest_good(tmp_path) == older
    assert "00000008: damaged, skipped" in caplog.text
    with pytest.raises(UserError, match="damaged"):
        checkpoints.load_params(newer)


def test_a_save_cut_short_is_not_trusted_and_is_removed(tmp_path):
    whole, cut = save(tmp_path, [3, 8])
    (cut / "checksums.json").unlink()
    assert checkpoints.latest_good(tmp_path) == whole
    CheckpointWriter(tmp_path).close()
    assert not cut.exists() and whole.exists()


@pytest.mark.parametrize("name", ["000000003", "\u0660" * 8, "00000003.damaged", "notes"])
def test_folders_of_other_names_are_no_checkpoints(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "checksums.json").write_text("{}")
    assert checkpoint_folder.steps(tmp_path) == []


def test_later_steps_are_set_aside_so_that_they_count_for_nothing(tmp_path):
    _, newer = save(tmp_path, [3, 8])
    writer = CheckpointWriter(tmp_path, keep=Keep(last=1))
    writer.set_aside_after(3)
    writer.save(fresh(), meta(5))
    writer.close()
    assert checkpoint_folder.steps(tmp_path / "checkpoints") == [5]
    assert newer.with_name("00000008.damaged").is_dir()


def test_the_last_ones_and_every_nth_stay(tmp_path):
    save(tmp_path, [2, 4, 6, 8, 10], Keep(last=2, every_steps=4))
    assert checkpoint_folder.steps(tmp_path / "checkpoints") == [4, 8, 10]


def test_one_for_each_so_many_hours_of_the_run_stays(tmp_path):
    """Saved every 20 minutes, an hour apart: the first of each hour, and the newest."""
    save(tmp_path, range(1, 9), Keep(last=1, every_hours=1.0), seconds_a_step=1200)
    assert checkpoint_folder.steps(tmp_path / "checkpoints") == [3, 6, 8]


def test_a_disk_without_room_is_one_line_and_costs_nothing_good(tmp_path):
    (good,) = save(tmp_path, [3])
    state = fresh(4)
    noise = jax.random.normal(jax.random.key(0), (2**19,))
    writer = CheckpointWriter(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, hard))  # no file of 2 MB can be written
    try:
        writer.save(dataclasses.replace(state, params={**state.params, "noise": noise}), meta(4))
        with pytest.raises(UserError, match="could not be written .*from step 3") as error:
            writer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        writer.close()
    assert "\n" not in str(error.value)
    assert checkpoints.latest_good(tmp_path) == good
    save(tmp_path, [4])
    assert checkpoint_folder.steps(tmp_path / "checkpoints") == [3, 4]


@pytest.mark.parametrize("mesh_config", [MeshConfig(), MeshConfig(replica=4, fsdp=1)])
def test_restored_onto_another_mesh(tmp_path, mesh_config):
    (folder,) = save(tmp_path, [7])
    target = layout(mesh_config)
    state = checkpoints.restore(folder, target.abstract)
    saved = fresh(7)
    assert int(state.step) == 7 and checkpoint_folder.read_meta(folder) == meta(7)
    for name in ("params", "variables", "opt_state"):
        assert_same(getattr(state, name), getattr(saved, name))
    places = jax.tree.map(lambda array: array.sharding, state)
    assert jax.tree.all(jax.tree.map(lambda a, b: a == b, places, target.shardings))


def test_load_params_needs_to_know_nothing(tmp_path):
    (folder,) = save(tmp_path, [7])
    for path in (tmp_path, tmp_path / "checkpoints", folder):
        weights = checkpoints.load_params(path)
        assert_same(weights.params, fresh(7).params)
        assert_same(weights.variables, fresh(7).variables)
        assert weights.meta.step == 7


def test_metadata_is_told_of_every_place_that_is_read_from(tmp_path):
    older, newer = save(tmp_path, [3, 7])
    for path in (tmp_path, tmp_path / "checkpoints", newer):
        assert checkpoint_folder.told_meta(path) == meta(7)
        assert checkpoint_folder.training_folder(path) == tmp_path.resolve()
    assert checkpoint_folder.told_meta(older) == meta(3)


def test_a_run_may_be_called_checkpoints(tmp_path):
    run = tmp_path / "checkpoints"
    (folder,) = save(run, [7])
    assert checkpoint_folder.training_folder(run) == run.resolve()
    assert checkpoints.find(run) == checkpoints.find(run / "checkpoints") == folder.resolve()


def test_load_params_onto_a_mesh_of_the_model_that_was_saved(tmp_path):
    (folder,) = save(tmp_path, [7])
    wanted = layout(MeshConfig()).abstract.params
    given = []
    weights = checkpoints.load_params(tmp_path, layout=lambda told: given.append(told) or wanted)
    assert given == [meta(7)]
    assert_same(weights.params, fresh(7).params)
    same = jax.tree.map(
        lambda array, place: array.sharding == place.sharding, weights.params, wanted
    )
    assert jax.tree.all(same)
    with pytest.raises(UserError, match="of another model: params 'up' is"):
        checkpoints.load_params(folder, layout=lambda _: {**wanted, "up": jnp.zeros((8, 32))})


def test_averages_are_loaded_onto_a_mesh_too(tmp_path):
    average = jax.tree.map(lambda x: x + 1, fresh(7).params)
    writer = CheckpointWriter(tmp_path)
    extras = {"ema": average, "norms": {"mean": jnp.zeros(())}}
    writer.save(dataclasses.replace(fresh(7), extras=extras), meta(7))
    writer.close()
    wanted = layout(MeshConfig()).abstract.params
    weights = checkpoints.load_params(tmp_path, layout=lambda _: wanted)
    assert_same(weights.params, average)


def test_no_checkpoint_is_said(tmp_path):
    with pytest.raises(UserError, match="holds no whole checkpoint"):
        checkpoints.load_params(tmp_path)
    assert checkpoints.latest_good(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda params: {**params, "up": jnp.zeros((8, 32))},
            r"'up' is float32\[8, 16\] there and float32\[8, 32\]",
        ),
        (lambda params: {**params, "new": jnp.zeros(3)}, r"'new' is absent there"),
        (
            lambda params: {**params, "up": params["up"].astype(jnp.bfloat16)},
            r"bfloat16\[8, 16\] here",
        ),
    ],
)
def test_another_model_is_refused_by_name(tmp_path, change, message):
    (folder,) = save(tmp_path, [7])
    base = make_stage()
    other = make_stage(init=lambda key: (change(base.init(key)[0]), base.init(key)[1]), axes=None)
    with pytest.raises(UserError, match=message):
        checkpoints.restore(folder, layout(stage=other).abstract)


def test_a_save_holds_the_values_of_its_moment(tmp_path):
    """The step gives its buffers up, and may overwrite them while the save is still writing."""
    change = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = TrainState(jnp.int32(1), {"big": jnp.zeros((1024, 1024))}, {}, {})
    writer = CheckpointWriter(tmp_path)
    writer.save(state, meta(1))
    for _ in range(20):
        state = change(state)
    writer.close()
    np.testing.assert_array_equal(checkpoints.load_params(tmp_path).params["big"], 0.0)


def test_an_error_in_the_background_is_raised(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("disk full")

    writer = CheckpointWriter(tmp_path)
    monkeypatch.setattr(checkpoint_folder, "_hash_files", full)
    writer.save(fresh(), meta(1))
    with pytest.raises(UserError, match="disk full.* starts anew"):
        writer.wait()
    writer.close()
    assert checkpoints.latest_good(tmp_path) is None


class Killed(BaseException):
    """What nobody catches, as `kill -9` is."""


CHANGES = ("unlink", "rmdir", "rename", "replace")


def kill_after(number, act):
    """Runs `act` until it has removed or renamed so many files and folders; whether it ended."""
    left = itertools.count(number, -1)
    with pytest.MonkeyPatch.context() as patch:
        for name, real in [(name, getattr(os, name)) for name in CHANGES]:

            def dies(*args, real=real, **kwargs):
                real(*args, **kwargs)
                if next(left) == 1:
                    raise Killed

            patch.setattr(os, name, dies)
        try:
            act()
        except Killed:
            return False
    return True


def put(folder, step):
    """A checkpoint of two small files, made as a save makes one."""
    path = checkpoint_folder.step_folder(folder, step)
    (path / "params").mkdir(parents=True)
    (path / "params/data").write_text(str(step))
    checkpoint_folder.seal(path, meta(step, 3600.0 * step))
    return path


def three(folder):
    """A good checkpoint, 8, between an old one and a later one that does not count any more."""
    for step in (3, 8, 9):
        put(folder, step)
    (folder / "00000009.damaged/params").mkdir(parents=True)
    (folder / "00000009.damaged/params/data").write_text("of an earlier time")


KEEP_BY_CLOCK = Keep(last=1, every_hours=4.0)
ACTS = {
    "prune": lambda folder: KEEP_BY_CLOCK.prune(folder),
    "set aside": lambda folder: checkpoint_folder.set_aside(folder, after=8),
    "save": lambda folder: put(folder, 10),
    "delete": lambda folder: checkpoint_folder.delete(folder / "00000009"),
}


@pytest.mark.parametrize("act", ACTS)
def test_after_a_kill_at_any_moment_the_next_start_goes_on(tmp_path, act):
    kills = 0
    for number in itertools.count(1):
        folder = tmp_path / str(number) / "checkpoints"
        three(folder)
        ended = kill_after(number, lambda folder=folder: ACTS[act](folder))
        good = checkpoints.latest_good(folder.parent)
        assert good is not None and good.name in ("00000008", "00000009", "00000010")
        checkpoint_folder.remove_unfinished(folder)
        step = checkpoint_folder.read_meta(good).step
        checkpoint_folder.set_aside(folder, after=step)
        newest = put(folder, step + 1)
        KEEP_BY_CLOCK.prune(folder)
        assert checkpoints.latest_good(folder.parent) == newest
        found = checkpoint_folder.steps(folder)
        assert found == [n for n in found if checkpoints.find(folder / f"{n:08d}")]
        if ended:
            break
        kills += 1
    assert kills > 1


@pytest.mark.parametrize("left", ["{}", "[]", "5", '{"stage": 1}', "no JSON", None])
def test_a_checkpoint_that_says_nothing_of_itself_stops_no_later_save(tmp_path, left):
    """What a version that deleted in any order may have left."""
    three(tmp_path)
    path = tmp_path / "00000003/meta.json"
    path.unlink() if left is None else path.write_text(left)
    KEEP_BY_CLOCK.prune(tmp_path)
    assert checkpoint_folder.steps(tmp_path) == [8, 9]
