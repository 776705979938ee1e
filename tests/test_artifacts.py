"""Files are whole or absent, and a manifest says what a folder was made from."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from speechlm_jax import artifacts
from speechlm_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class _Config:
    widths: tuple[int, ...] = (1, 2)


@pytest.fixture
def stage(tmp_path):
    """A finished stage's folder with two files."""
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.txt").write_text("b")
    artifacts.write_manifest(
        tmp_path,
        "codes",
        inputs={"clips": "1234"},
        config=_Config(),
        seed=3,
        counts={"rows": 2},
        files=["sub/b.txt", tmp_path / "a.txt"],
        extra={"frame_rate_hz": 12.5},
    )
    return tmp_path


def test_json_lines_come_back(tmp_path):
    rows = [{"text": "ä\n\u2028日本", "n": 1}, {}, {"list": [1, None, 0.1]}]
    artifacts.write_jsonl(tmp_path / "new/rows.jsonl", rows)
    assert list(artifacts.read_jsonl(tmp_path / "new/rows.jsonl")) == rows
    artifacts.write_json(tmp_path / "one.json", rows)
    assert artifacts.read_json(tmp_path / "one.json") == rows


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "rows.jsonl"
    artifacts.write_jsonl(path, [{"old": 1}])

    def rows():
        yield {"new": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        artifacts.write_jsonl(path, rows())
    assert list(artifacts.read_jsonl(path)) == [{"old": 1}]
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_write_that_is_killed_leaves_the_old_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    artifacts.write_jsonl(path, [{"old": 1}])
    code = (
        "import os, signal, sys\n"
        "from speechlm_jax import artifacts\n"
        "with artifacts.atomic_file(sys.argv[1]) as file:\n"
        "    file.write(b'{\"new\": 1}\\n')\n"
        "    file.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert list(artifacts.read_jsonl(path)) == [{"old": 1}]
    artifacts.write_jsonl(path, [{"new": 2}])
    assert list(artifacts.read_jsonl(path)) == [{"new": 2}]


def test_a_new_folder_is_there_when_it_is_whole(tmp_path):
    with artifacts.new_folder(tmp_path / "deep/made") as folder:
        artifacts.write_json(folder / "inner/a.json", {"a": 1})
        assert not (tmp_path / "deep/made").exists()
    assert artifacts.read_json(tmp_path / "deep/made/inner/a.json") == {"a": 1}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["made"]
    (tmp_path / "empty").mkdir()
    with artifacts.new_folder(tmp_path / "empty") as folder:
        (folder / "a").touch()
    assert (tmp_path / "empty/a").is_file()


def test_a_new_folder_that_fails_is_not_there_and_nothing_is_written_over(tmp_path):
    with pytest.raises(ZeroDivisionError), artifacts.new_folder(tmp_path / "made") as folder:
        (folder / "a").touch()
        _ = 1 / 0
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="is not empty; give a new folder"):
        with artifacts.new_folder(tmp_path / "made") as folder:
            (tmp_path / "made").mkdir()
            (tmp_path / "made/theirs").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "theirs"]
    with pytest.raises(UserError, match="is not empty; give a new folder"):
        artifacts.require_new(tmp_path / "made/theirs")


def test_a_new_folder_that_is_killed_is_not_there(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from speechlm_jax import artifacts\n"
        "with artifacts.new_folder(sys.argv[1]) as folder:\n"
        "    (folder / 'config.json').write_text('{}')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "made")], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL and not (tmp_path / "made").exists()
    with artifacts.new_folder(tmp_path / "made") as folder:
        (folder / "config.json").touch()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"a": 1}\n{"a": \n', ":2: is not JSON"),
        (b'{"a": 1}\n[1]\n', ":2: is not a JSON object"),
        ("ä".encode("latin-1"), "is not UTF-8"),
        ('{}\n\r\n{"a": "ä"}\n'.encode() + b"\xff\n", "is not UTF-8; convert it, e.g. `iconv"),
        ('{}\n\r\n{"a": "ä"}\n'.encode() + b"\xff\n", "the first fault is in line 4)"),
        (None, "no such file"),
    ],
)
def test_a_broken_line_is_named(tmp_path, data, words):
    path = tmp_path / "rows.jsonl"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        list(artifacts.read_jsonl(path))
    assert str(path) in str(caught.value) and words in str(caught.value)
    with pytest.raises(UserError, match="rows.jsonl"):
        artifacts.read_json(path)


def test_a_manifest_comes_back(stage):
    found = artifacts.read_manifest(stage)
    assert (found.kind, found.seed, found.counts) == ("codes", 3, {"rows": 2})
    assert sorted(found.files) == ["a.txt", "sub/b.txt"]
    assert found.extra == {"frame_rate_hz": 12.5}
    assert artifacts.verify(stage) == []


@pytest.mark.parametrize(
    ("change", "current"),
    [
        ({}, True),
        ({"config": {"class": "_Config", "widths": (1, 2)}}, True),
        ({"kind": "clips"}, False),
        ({"inputs": {"clips": "1235"}}, False),
        ({"inputs": {}}, False),
        ({"config": _Config((1,))}, False),
        ({"seed": 4}, False),
    ],
)
def test_a_stage_is_current_until_what_made_it_changes(stage, change, current):
    made_from = {"kind": "codes", "inputs": {"clips": "1234"}, "config": _Config(), "seed": 3}
    assert artifacts.is_current(stage, **{**made_from, **change}) is current
    assert not artifacts.is_current(stage / "sub", **made_from)


def test_what_is_made_anew_is_said_with_what_differs(stage, caplog):
    made_from = {"kind": "codes", "inputs": {"clips": "1234"}, "config": _Config(), "seed": 3}
    with caplog.at_level("INFO", "speechlm.stages"):
        assert artifacts.is_current(stage, **made_from)
        assert not artifacts.is_current(stage / "sub", **made_from)  # nothing is lost there
        assert not caplog.messages
        changed = {**made_from, "inputs": {"clips": "1234", "rules": "2"}, "seed": 4}
        assert not artifacts.is_current(stage, **changed)
    assert caplog.messages == [
        f"{stage}: is made anew; it had no inputs.rules, this run has '2'; seed=3, this run has 4"
    ]


def test_verify_names_what_changed(stage):
    (stage / "a.txt").write_text("A")
    (stage / "sub/b.txt").unlink()
    assert artifacts.verify(stage) == ["a.txt", "sub/b.txt"]
    data = artifacts.read_json(stage / artifacts.MANIFEST)
    data["files"] = {"x" * 5000: "", "\0": "", ".": "", "/dev/zero": "", "pipe": ""}
    os.mkfifo(stage / "pipe")  # neither ever ends
    outside = stage.parent / "outside.txt"
    outside.write_text("a")
    data["files"] |= {
        name: artifacts.sha256_file(outside) for name in ("../outside.txt", str(outside))
    }
    artifacts.write_json(stage / artifacts.MANIFEST, data)
    assert artifacts.verify(stage) == list(data["files"])


def test_the_fingerprint_changes_with_inputs_config_and_content(stage):
    found = artifacts.read_manifest(stage)
    changes = {"kind": "x", "inputs": {}, "config": {}, "files": {**found.files, "a.txt": "0"}}
    prints = {dataclasses.replace(found, **{key: changes[key]}).fingerprint for key in changes}
    assert len(prints | {found.fingerprint}) == 5
    assert dataclasses.replace(found, counts={}).fingerprint == found.fingerprint


def test_a_folder_without_a_readable_manifest_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / ("x" * 5000), tmp_path / "\0"):
        with pytest.raises(UserError, match="run its stage first"):
            artifacts.read_manifest(folder)
    artifacts.write_json(tmp_path / artifacts.MANIFEST, {"version": 9})
    with pytest.raises(UserError, match="run its stage again"):
        artifacts.read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("rows-0", True), ("é" * 127, True), ("...", True),
        ("", False), (".", False), ("..", False), ("a/b", False), ("a\0", False),
        ("é" * 128, False), ("\ud800", False),
    ],
)  # fmt: skip
def test_a_name_is_one_that_a_file_can_have(tmp_path, name, is_one):
    assert artifacts.is_file_name(name) == is_one
    if is_one:
        (tmp_path / name).write_text("there")
        assert [path.name for path in tmp_path.iterdir()] == [name]
    assert artifacts.is_inside(f"below/{name}/it") == (is_one or name in ("", ".", "a/b"))
