"""One of many gets a folder; the dead free it, the living keep it, and who has lost it knows."""

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from speechlm_jax import config as configs
from speechlm_jax import folder_lock
from speechlm_jax.errors import UserError
from speechlm_jax.folder_lock import FILE, FolderLock, Holder

HOLD = """
import sys, time
from speechlm_jax.folder_lock import FolderLock
with FolderLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""
ELSEWHERE = Holder("t", "pod-1", "another machine", 7, "1", "2026-01-01 00:00 UTC", "train", 1)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Renewed often; a lease far longer than what happens at once."""
    monkeypatch.setattr(folder_lock, "LEASE_SECONDS", 30.0)
    monkeypatch.setattr(folder_lock, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(folder_lock, "POLL_SECONDS", 0.02)


@pytest.fixture
def short_lease(monkeypatch):
    monkeypatch.setattr(folder_lock, "LEASE_SECONDS", 0.5)


def put(folder, holder):
    (folder / FILE).write_text(json.dumps(configs.to_json(holder)))


def here(**changes):
    """What this process would write."""
    with FolderLock("unused", mine=False) as lock:
        return dataclasses.replace(lock._me, **changes)


def seconds_to_take(folder):
    began = time.monotonic()
    with FolderLock(folder):
        return time.monotonic() - began


def test_the_second_is_refused_and_told_who_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/speechlm", "train", "lm.py", "a=\n"])
    with FolderLock(tmp_path) as lock:
        with pytest.raises(
            UserError, match=rf"{FILE}: .* in use .process {os.getpid()} on"
        ) as error:
            FolderLock(tmp_path).__enter__()
        assert "speechlm train lm.py" in str(error.value) and "\n" not in str(error.value)
        lock.confirm()
    assert [*tmp_path.iterdir()] == []
    assert seconds_to_take(tmp_path) < 10


def test_a_folder_that_was_made_for_it_goes_with_it_unless_it_is_used(tmp_path):
    for name in ("used", "unused"):
        with FolderLock(tmp_path / "new" / name):
            if name == "used":
                (tmp_path / "new/used/file").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["used"]


@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_a_killed_holder_frees_the_folder_at_once(tmp_path, reaped):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {process.pid}"):
            FolderLock(tmp_path).__enter__()
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        if reaped:
            process.wait()
        assert seconds_to_take(tmp_path) < 10


@pytest.mark.parametrize("changes", [{"started": "1"}, {"pid": 0}, {"pid": -1}, {"pid": 2**62}])
def test_a_number_that_is_not_the_holders_is_no_life(tmp_path, changes):
    """After a restart numbers come again."""
    put(tmp_path, here(**changes))
    assert seconds_to_take(tmp_path) < 10


def test_a_process_that_the_machine_hides_lives(tmp_path, monkeypatch):
    """Of another user, under `hidepid`."""

    def hidden(*_):
        raise PermissionError

    put(tmp_path, here(pid=99))
    monkeypatch.setattr(os, "kill", hidden)
    monkeypatch.setattr(folder_lock, "_started", lambda pid: "")
    with pytest.raises(UserError, match="in use .process 99"):
        FolderLock(tmp_path).__enter__()


@pytest.mark.parametrize(
    "left", [json.dumps(configs.to_json(ELSEWHERE)), "", "{", "[[", "[" * 5000, '{"token": 1}', "5"]
)
def test_a_file_that_nobody_renews_is_taken_over_after_a_lease(tmp_path, short_lease, left, caplog):
    (tmp_path / FILE).write_text(left)
    with caplog.at_level(logging.WARNING, logger="speechlm"):
        assert 0.5 < seconds_to_take(tmp_path) < 10
    waits, gone = caplog.messages
    assert "the folder is free within 0 s" in waits and "its holder is gone" in gone
    assert ("process 7 on pod-1" in waits) == ("pod-1" in left)
    assert [*tmp_path.iterdir()] == []


def test_an_old_file_is_taken_over_at_once(tmp_path):
    put(tmp_path, ELSEWHERE)
    hour_ago = time.time() - 3600  # beyond ten leases
    os.utime(tmp_path / FILE, (hour_ago, hour_ago))
    assert seconds_to_take(tmp_path) < 10


def test_a_holder_elsewhere_that_renews_keeps_it(tmp_path):
    stop = threading.Event()

    def renew():
        number = 0
        while not stop.wait(0.05):
            put(tmp_path, dataclasses.replace(ELSEWHERE, renewals=number))
            number += 1

    put(tmp_path, ELSEWHERE)
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(UserError, match="process 7 on pod-1, since 2026-01-01"):
            FolderLock(tmp_path).__enter__()
    finally:
        stop.set()
        thread.join()


def test_one_late_reading_is_no_sign_of_life(tmp_path, short_lease):
    """A cache may show an older file first."""
    put(tmp_path, ELSEWHERE)
    late = threading.Timer(0.2, put, (tmp_path, dataclasses.replace(ELSEWHERE, renewals=2)))
    late.start()
    assert 0.5 < seconds_to_take(tmp_path) < 10


def test_of_many_that_find_a_dead_holder_one_gets_the_folder(tmp_path):
    for _ in range(10):
        put(tmp_path, here(started="1"))
        start, done, got = threading.Barrier(8), threading.Event(), []

        def contend(start=start, done=done, got=got):
            start.wait()
            try:
                with FolderLock(tmp_path) as lock:
                    got.append("held")
                    done.wait(30)
                    lock.confirm()
            except UserError as error:
                got.append(str(error))

        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 30
        while len(got) < 8 and time.monotonic() < deadline:
            time.sleep(0.01)
        done.set()
        for thread in threads:
            thread.join()
        assert got.count("held") == 1 and len(got) == 8, got
        assert [*tmp_path.iterdir()] == []


def test_a_kill_in_the_middle_of_a_take_over_holds_nobody_up(tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    put(tmp_path, here(started="1"))
    monkeypatch.setattr(folder_lock, "_read", killed)
    monkeypatch.setattr(type(tmp_path), "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        FolderLock(tmp_path)._remove((tmp_path / FILE).read_bytes())
    monkeypatch.undo()
    assert len([*tmp_path.iterdir()]) == 2
    monkeypatch.setattr(folder_lock, "LEASE_SECONDS", 0.2)
    assert seconds_to_take(tmp_path) < 10


@pytest.mark.parametrize("theirs", [True, False], ids=["taken", "gone"])
def test_who_has_lost_the_folder_is_told_before_it_writes(tmp_path, theirs):
    (tmp_path / "file").touch()
    with FolderLock(tmp_path) as lock:
        (tmp_path / FILE).unlink()
        if theirs:
            put(tmp_path, ELSEWHERE)
        with pytest.raises(UserError, match="pod-1" if theirs else "the file is gone"):
            lock.confirm()
        with pytest.raises(UserError, match="no longer this process's"):
            lock.check()
    assert (tmp_path / FILE).exists() == theirs


def test_the_thread_finds_out_too(tmp_path):
    with FolderLock(tmp_path) as lock:
        lock.check()
        os.replace(tmp_path / FILE, tmp_path / "moved")
        deadline = time.monotonic() + 10
        while not lock._lost and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(UserError, match="the file is gone"):
            lock.check()


def test_a_sleep_that_nobody_used_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "RENEW_SECONDS", 60.0)
    with FolderLock(tmp_path) as lock:
        lock._renewed -= 3600
        lock.confirm()


@pytest.mark.parametrize("away, refused", [(0, False), (3600, True)])
def test_a_file_that_cannot_be_written_for_a_lease_may_be_another_s(
    tmp_path, monkeypatch, away, refused
):
    with FolderLock(tmp_path) as lock:

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "pwrite", full)
        lock._renewed -= away
        if refused:
            with pytest.raises(UserError, match="could not be written for 36.. s .No space"):
                lock.confirm()
        else:
            lock.confirm()


def test_a_full_disk_at_the_start_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match="cannot be written .No space left"):
        FolderLock(tmp_path).__enter__()
    assert [*tmp_path.iterdir()] == []


def test_what_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        with pytest.raises(UserError, match="file"):
            FolderLock(tmp_path / place).__enter__()


def test_who_does_not_hold_does_nothing(tmp_path):
    with FolderLock(tmp_path), FolderLock(tmp_path, mine=False) as other:
        other.confirm()
        other.check()
    assert [*tmp_path.iterdir()] == []
