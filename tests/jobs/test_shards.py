"""A job may be killed at any moment: the same call goes on, and leaves the same bytes."""

import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

from speechlm_jax import artifacts
from speechlm_jax.errors import UserError
from speechlm_jax.jobs import pool
from speechlm_jax.jobs.commit import SHARDS, ShardFolder
from speechlm_jax.jobs.shards import (
    ShardTask,
    Taken,
    iter_shards,
    join_files,
    read_input,
    resume,
    run_shards,
    total,
    write_inputs,
)

TASKS = """
import os, time
from pathlib import Path
from speechlm_jax.errors import UserError

def write(shard, path, *, log, seconds=0.0, as_folder=False):
    with open(log, "a") as file:
        file.write(f"{shard} {os.getpid()}\\n")
    print("a library that prints")
    target = path
    if as_folder:
        path.mkdir()
        target = path / "part"
    with open(target, "w") as file:
        for line in range(50):
            file.write(f"{shard} {line}\\n")
            file.flush()
            time.sleep(seconds / 50)
    return {"lines": 50}

def fail(shard, path, *, user):
    if shard == 1:
        raise UserError("clip.wav: is silent") if user else ValueError("a bug")
    path.write_text(str(shard))

def die(shard, path, *, times, folder):
    marks = Path(folder)
    if shard == 1 and len(list(marks.iterdir())) < times:
        (marks / str(time.time_ns())).touch()
        os._exit(9)
    path.write_text(str(shard))
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A module that a worker process finds, as it finds a user's own: by the path."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "shard_tasks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return "shard_tasks"


def write_task(tasks, tmp_path, **arguments):
    return ShardTask(f"{tasks}:write", {"log": str(tmp_path / "log"), **arguments})


def ran(tmp_path) -> list[int]:
    log = tmp_path / "log"
    return [int(line.split()[0]) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.parametrize("as_folder", [False, True])
def test_shards_are_the_same_whoever_makes_them(tasks, tmp_path, as_folder):
    task = write_task(tasks, tmp_path, as_folder=as_folder)
    here = run_shards(task, num_shards=5, folder=tmp_path / "a", fingerprint="f")
    there = run_shards(task, num_shards=5, folder=tmp_path / "b", fingerprint="f", workers=2)
    assert [s.number for s in there] == list(range(5)) and there[0].result == {"lines": 50}
    assert [s.sha256 for s in here] == [s.sha256 for s in there]
    assert all(s.path.exists() for s in there)


def test_done_shards_are_skipped_until_inputs_or_bytes_change(tasks, tmp_path):
    def run(fingerprint):
        (tmp_path / "log").unlink(missing_ok=True)
        task = write_task(tasks, tmp_path)
        made = run_shards(task, num_shards=4, folder=tmp_path / "s", fingerprint=fingerprint)
        return ran(tmp_path), made

    assert run("f")[0] == [0, 1, 2, 3]
    again, made = run("f")
    assert again == [] and made[2].result == {"lines": 50}
    made[2].path.write_text("spoilt")
    (tmp_path / "s" / "00003.json").unlink()
    assert run("f")[0] == [2, 3]
    assert run("g")[0] == [0, 1, 2, 3]
    run_shards(write_task(tasks, tmp_path), num_shards=2, folder=tmp_path / "s", fingerprint="g")
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [
        "00000",
        "00000.json",
        "00001",
        "00001.json",
    ]


def test_kill_9_and_the_same_call_ends_in_the_same_bytes(tasks, tmp_path):
    folder = tmp_path / "s"
    # The job in a process of its own, that is killed in the middle of shards.
    code = (
        "from speechlm_jax.jobs.shards import *;import sys;"
        f"sys.path.insert(0, {str(tmp_path / 'modules')!r});"
        f"log = {str(tmp_path / 'log')!r};"
        "task = ShardTask('shard_tasks:write', {'log': log, 'seconds': 0.3});"
        f"run_shards(task, num_shards=12, folder={str(folder)!r}, fingerprint='f', workers=2)"
    )
    job = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not (folder / "00002.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    job.wait()
    before = len(ran(tmp_path))
    recorded = len(list(folder.glob("*.json")))
    assert 3 <= recorded < 12
    made = run_shards(write_task(tasks, tmp_path), num_shards=12, folder=folder, fingerprint="f")
    # What was recorded is not done again; a worker may have recorded one more after the kill.
    assert 12 - recorded - 2 <= len(ran(tmp_path)) - before <= 12 - recorded
    clean = run_shards(
        write_task(tasks, tmp_path), num_shards=12, folder=tmp_path / "c", fingerprint="f"
    )
    assert [s.sha256 for s in made] == [s.sha256 for s in clean]


@pytest.mark.parametrize(
    ("user", "kind", "named"), [(True, UserError, "silent"), (False, Exception, "a bug")]
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_is_raised_here_and_finished_shards_are_kept(
    tasks, tmp_path, user, kind, named, workers
):
    task = ShardTask(f"{tasks}:fail", {"user": user})
    with pytest.raises(kind, match=named):
        run_shards(task, num_shards=3, folder=tmp_path / "s", fingerprint="f", workers=workers)
    assert (tmp_path / "s" / "00000").read_text() == "0"
    assert not (tmp_path / "s" / "00001").exists()


def test_a_worker_that_dies_is_replaced(tasks, tmp_path):
    (tmp_path / "marks").mkdir()
    task = ShardTask(
        f"{tasks}:die", {"times": pool.ATTEMPTS - 1, "folder": str(tmp_path / "marks")}
    )
    made = run_shards(task, num_shards=3, folder=tmp_path / "s", fingerprint="f", workers=1)
    assert [s.path.read_text() for s in made] == ["0", "1", "2"]


def test_a_worker_that_dies_every_time_is_an_error(tasks, tmp_path):
    (tmp_path / "marks").mkdir()
    task = ShardTask(f"{tasks}:die", {"times": 99, "folder": str(tmp_path / "marks")})
    with pytest.raises(RuntimeError, match="shard 1 died"):
        run_shards(task, num_shards=2, folder=tmp_path / "s", fingerprint="f", workers=1)


def test_this_process_runs_any_callable_but_workers_need_a_name(tmp_path):
    def task(shard: int, path: Path) -> None:
        path.write_text(f"{shard} {os.getpid()}")

    made = run_shards(task, num_shards=2, folder=tmp_path, fingerprint="f")
    assert made[1].path.read_text() == f"1 {os.getpid()}"
    assert artifacts.read_json(tmp_path / "00001.json")["result"] is None
    with pytest.raises(TypeError, match="ShardTask"):
        run_shards(task, num_shards=4, folder=tmp_path, fingerprint="g", workers=1)


WORDS = "anna has a red cat".split()


def make_words(out, layout, *, words=WORDS, fingerprint="f", fail_at=None):
    """A job of one shard a word, and two files or one; returns the words whose shards ran."""
    ran = []

    def task(word: str, path: Path) -> dict[str, int]:
        ran.append(word)
        if word == fail_at:
            raise KeyboardInterrupt
        for target in [path] if layout == "file" else [path / f"{word}.a", path / f"{word}.b"]:
            target.parent.mkdir(exist_ok=True)
            target.write_text(target.suffix + word)
        return {"letters": len(word)}

    into = out if layout == "into" else None
    inputs = iter(words)  # that nobody can count before
    made = list(iter_shards(task, inputs, folder=out / SHARDS, fingerprint=fingerprint, into=into))
    assert [shard.number for shard in made] == list(range(len(words)))
    assert total(made, "letters") == sum(map(len, words))
    return ran


def tree(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


LAYOUTS = pytest.mark.parametrize("layout", ["file", "folder", "into"])


@LAYOUTS
@pytest.mark.parametrize("fail_at", WORDS)
def test_a_stream_goes_on_at_the_shard_that_failed(tmp_path, layout, fail_at):
    with pytest.raises(KeyboardInterrupt):
        make_words(tmp_path / "a", layout, fail_at=fail_at)
    assert make_words(tmp_path / "a", layout) == WORDS[WORDS.index(fail_at) :]
    assert make_words(tmp_path / "a", layout) == []
    make_words(tmp_path / "b", layout)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


@LAYOUTS
def test_a_stream_is_made_anew_where_inputs_or_bytes_changed(tmp_path, layout):
    a, b = tmp_path / "a", tmp_path / "b"
    make_words(a, layout)
    spoilt = {"file": f"{SHARDS}/00001", "folder": f"{SHARDS}/00001/has.a", "into": "has.a"}[layout]
    (a / spoilt).write_text("spoilt")
    assert make_words(a, layout) == ["has"]
    (a / spoilt).unlink()
    assert make_words(a, layout) == ["has"]
    fewer = ["a", "dog"]  # the first was the third of the job before
    assert make_words(a, layout, words=fewer, fingerprint="g") == fewer
    make_words(b, layout, words=fewer, fingerprint="g")
    assert tree(a) == tree(b), "nothing of the earlier job is left"


def test_files_of_shards_lie_side_by_side_or_are_joined(tmp_path):
    make_words(tmp_path, "into")
    assert {p.name for p in tmp_path.iterdir()} == {
        SHARDS, *(f"{word}.{part}" for word in WORDS for part in "ab")
    }  # fmt: skip
    assert {p.name for p in (tmp_path / SHARDS).iterdir()} == {f"{n:05d}.json" for n in range(5)}
    join_files((tmp_path / f"{word}.a" for word in WORDS), tmp_path / "all")
    assert (tmp_path / "all").read_text() == ".a" + ".a".join(WORDS)


def test_shards_of_a_stream_go_on_where_its_inputs_are_the_same(tmp_path):
    """Shards take two inputs each; from the first one that took others, all are made again."""

    def make(inputs: list[str]) -> int:
        place = ShardFolder(tmp_path, "f")
        place.open()
        shards, left = resume(place, iter(inputs), str.upper)
        done = len(shards)
        while pair := list(islice(left, 2)):
            taken = Taken()

            def write(path, pair=pair, taken=taken):
                path.write_text("".join(pair))
                for one in pair:
                    taken.add(one.upper())
                return taken.record

            shards.append(place.make(len(shards), write))
        place.close(len(shards), None)
        assert "".join(shard.path.read_text() for shard in shards) == "".join(inputs)
        assert sum(shard.result["inputs"] for shard in shards) == len(inputs)
        return done

    assert make(list("abcdefg")) == 0
    assert make(list("abcdefg")) == 4
    assert make(list("abcxefg")) == 1
    assert make(list("abcxe")) == 2
    (tmp_path / "00000").write_text("zz")
    assert make(list("abcxe")) == 0
    assert make([]) == 0 and not list(tmp_path.iterdir())


def test_a_worker_reads_the_rows_of_its_shard_alone(tmp_path):
    rows = [{"id": i} for i in range(7)]
    write_inputs(tmp_path, rows, rows_per_shard=3)
    assert [list(read_input(tmp_path, shard)) for shard in range(3)] == [
        rows[:3], rows[3:6], rows[6:],
    ]  # fmt: skip
