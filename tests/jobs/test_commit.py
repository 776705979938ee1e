"""A shard is there whole and recorded, or not at all."""

import itertools
import os

import pytest

from speechlm_jax.jobs.commit import SHARDS, ShardFolder, clear


class Killed(BaseException):
    """Stands for the end of the process."""


def write(layout):
    def task(path):
        for target in [path] if layout == "file" else [path / "rows", path / "counts"]:
            target.parent.mkdir(exist_ok=True)
            target.write_text(target.suffix + layout)
        return {"rows": 1}

    return task


def place(out, layout, fingerprint="f"):
    return ShardFolder(out / SHARDS, fingerprint, out if layout == "into" else None)


def tree(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def commit(out, layout):
    """Makes shard 0 if it is not done; returns whether it was."""
    here = place(out, layout)
    here.open()
    done = here.finished(0)
    made = done or here.make(0, write(layout))
    here.close(1, made)
    assert (made.number, made.result) == (0, {"rows": 1})
    return done is not None


@pytest.mark.parametrize("layout", ["file", "folder", "into"])
@pytest.mark.parametrize("is_really_dead", [True, False])
def test_before_whatever_rename_it_is_killed(tmp_path, layout, monkeypatch, is_really_dead):
    """`finally` runs where a worker raises; nothing does after kill -9."""
    assert not commit(tmp_path / "whole", layout)
    for number in itertools.count():
        out, calls = tmp_path / str(number), itertools.count()

        def replace(source, target, really=os.replace, number=number, calls=calls):
            if next(calls) == number:
                raise Killed
            really(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            if is_really_dead:
                patch.setattr("speechlm_jax.jobs.commit._remove", lambda path: None)
                patch.setattr("pathlib.Path.unlink", lambda path, missing_ok=False: None)
            try:
                commit(out, layout)
                break
            except Killed:
                pass
        assert not commit(out, layout) and commit(out, layout)
        assert tree(out) == tree(tmp_path / "whole")
    assert number == (3 if layout == "into" else 2), "of each file, and of the record"


def test_what_is_recorded_but_missing_or_of_another_job_is_not_done(tmp_path):
    for layout, file in (("file", f"{SHARDS}/00000"), ("into", "rows")):
        out = tmp_path / layout
        commit(out, layout)
        (out / file).unlink()
        assert place(out, layout).finished(0) is None
        commit(out, layout)
        other = place(out, layout, "g")
        other.open()
        assert other.finished(0) is None and tree(out) == {}


def test_what_is_cleared_is_ours(tmp_path):
    commit(tmp_path, "file")
    for name in (".stage.json.17.tmp", ".mine.tmp", "other.1.tmp", "parts"):
        (tmp_path / name).touch()
    clear(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {".mine.tmp", "other.1.tmp", "parts"}
    clear(tmp_path / "absent")
