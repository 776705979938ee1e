"""What is kept is what was put, newest first to stay; the disk never holds more than the limit."""

import errno
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from speechlm_jax.data.row_cache import RowCache
from speechlm_jax.errors import UserError

LIMIT = 1 << 20


@pytest.fixture
def cache(tmp_path):
    made = RowCache(limit=LIMIT, folder=tmp_path / "cache")
    yield made
    made.close()


def ours(folder):
    """The part of a shared folder that is this user's."""
    return folder / f"speechlm_rows_{os.getuid()}"


def blocks(folder) -> int:
    return sum(path.stat().st_blocks for path in folder.rglob("*")) * 512


@pytest.mark.parametrize("seed", [0, 1])
def test_values_are_those_that_were_put_and_the_newest_are_there(tmp_path, cache, seed):
    random, put = np.random.default_rng(seed), {}
    for number in range(400):
        key = int(random.integers(150))
        put.pop(key, None)  # last in order
        put[key] = random.integers(
            0, 256, int(random.integers(1, cache.part + 1)), np.uint8
        ).tobytes()
        cache.put(key, put[key])
        assert blocks(tmp_path / "cache") <= LIMIT
        kept = {k: value for k in put if (value := cache.get(k)) is not None}
        assert all(kept[k] == put[k] and k in cache for k in kept)
        # a value that did not fit into a file has left some room there
        newest, size = [], 0
        for k in reversed(put):
            size += len(put[k])
            if size > 4 * cache.part:
                break
            newest.append(k)
        assert set(newest) <= set(kept), number
    assert len(kept) < len(put)


def test_a_value_that_can_never_fit_and_a_limit_of_nothing(tmp_path, cache):
    with pytest.raises(UserError, match=r"--disk-gb 0.001049: too small.*at least 0.00") as error:
        cache.put("key", bytes(cache.part + 1))
    least = float(str(error.value).rsplit(" ", 1)[1])
    enough = RowCache(limit=int(least * 1e9), folder=tmp_path)
    enough.put("key", bytes(cache.part + 1))
    enough.close()
    with pytest.raises(UserError, match="too small to read rows"):
        RowCache(limit=4096, folder=tmp_path)


def test_a_dropped_value_is_gone(cache):
    cache.put("a", b"1")
    cache.drop("a")
    assert cache.get("a") is None and "a" not in cache


def test_a_full_disk_is_one_line(cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"No space left on device; give a smaller --disk-gb"):
        cache.put("a", b"1")
    assert not list(cache.folder.glob("ring-*"))


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/cache/.*; give another data.cache"):
        RowCache(limit=LIMIT, folder=tmp_path / "file/cache")


def test_processes_have_folders_of_their_own_and_a_killed_one_leaves_nothing_for_long(tmp_path):
    code = (
        "import sys, time\n"
        "from speechlm_jax.data.row_cache import RowCache\n"
        f"cache = RowCache(limit={LIMIT}, folder=sys.argv[1])\n"
        "cache.put('a', b'theirs')\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
        "print(cache.get('a'))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    killed, living = (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    for process in (killed, living):
        assert process.stdout.readline() == "ready\n"
    assert len(list(ours(tmp_path).glob("rows-*"))) == 2
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert len(list(ours(tmp_path).glob("rows-*"))) == 2
    mine = RowCache(limit=LIMIT, folder=tmp_path)
    assert len(list(ours(tmp_path).glob("rows-*"))) == 2  # theirs who lives, and mine
    assert living.communicate("")[0] == "b'theirs'\n"
    assert list(ours(tmp_path).glob("rows-*")) == [
        mine.folder
    ]  # a process that ends takes its own along
    mine.close()
    assert not list(ours(tmp_path).glob("rows-*"))


def test_a_shared_folder_has_a_part_that_nobody_else_may_enter(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    cache = RowCache(limit=LIMIT, folder=shared)
    cache.put("a", b"1")
    for path in (ours(shared), cache.folder, *cache.folder.iterdir()):
        assert path.stat().st_mode & 0o077 == 0 and path.stat().st_uid == os.getuid()
    cache.close()
    ours(shared).chmod(0o777)  # of an earlier version, or by mistake
    RowCache(limit=LIMIT, folder=shared).close()
    assert ours(shared).stat().st_mode & 0o777 == 0o700


@pytest.fixture
def mine(tmp_path):
    """Files of the user's that nobody may touch."""
    folder = tmp_path / "mine"
    (folder / "deep").mkdir(parents=True)
    (folder / "file").write_text("precious")
    (folder / ".lock").write_text("precious")
    yield folder
    assert (folder / "deep").is_dir() and len(list(folder.iterdir())) == 3
    assert {(folder / name).read_text() for name in ("file", ".lock")} == {"precious"}


@pytest.mark.parametrize("kind", ["folder", "lock", "hard_lock", "pipe"])
def test_planted_links_are_refused_and_nothing_behind_them_is_touched(tmp_path, mine, kind):
    shared = tmp_path / "shared"
    shared.mkdir()
    if kind == "folder":
        ours(shared).symlink_to(mine)
    else:
        ours(shared).mkdir()
        lock = ours(shared) / ".lock"
        if kind == "lock":
            lock.symlink_to(mine / "file")
        elif kind == "hard_lock":
            lock.hardlink_to(mine / "file")
        else:
            os.mkfifo(lock)
    if kind in ("hard_lock", "pipe"):  # nothing is read or written there
        return RowCache(limit=LIMIT, folder=shared).close()
    with pytest.raises(UserError, match="a link, or no folder, is in the way; .*data.cache"):
        RowCache(limit=LIMIT, folder=shared)


def test_links_among_what_was_left_are_not_followed(tmp_path, mine):
    RowCache(limit=LIMIT, folder=tmp_path).close()
    (ours(tmp_path) / "rows-link").symlink_to(mine)
    (ours(tmp_path) / "rows-file").write_text("x")
    (ours(tmp_path) / "rows-left").mkdir()
    (ours(tmp_path) / "rows-left/.lock").symlink_to(mine / "file")
    (ours(tmp_path) / "rows-old").mkdir()
    (ours(tmp_path) / "rows-old/inner").symlink_to(mine)
    cache = RowCache(limit=LIMIT, folder=tmp_path)
    left = {path.name for path in ours(tmp_path).glob("rows-*")} - {cache.folder.name}
    assert left == {"rows-link", "rows-file", "rows-left"}
    cache.close()


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    ours(tmp_path).mkdir()
    with pytest.raises(UserError, match=f"belongs to user {me}; .*give another data.cache"):
        RowCache(limit=LIMIT, folder=tmp_path)
