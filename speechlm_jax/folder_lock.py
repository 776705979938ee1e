"""Lets one process at a time write into a folder, also if several hosts share the folder.

The holder's file identifies it, and a thread rewrites the file every few seconds. A process that
wants the folder and finds a file from its own machine checks whether the holder lives. If the file
is from elsewhere, it reads the file again and again: a file that changes has a live holder; one
that stays the same for a lease has none, and is removed. The lease is measured by one machine's
clock; two are compared only by a file's time of change (`OLD_SECONDS`, claims to remove a file).

It needs a file system with exclusive creation, and no locks: NFS and gcsfuse will do. A lease must
last longer than the file system caches a file's size and time (gcsfuse: a minute).
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
import uuid
from pathlib import Path

from speechlm_jax import config as configs
from speechlm_jax.errors import UserError

FILE = ".owner.json"
LEASE_SECONDS = 120.0
RENEW_SECONDS = 15.0
POLL_SECONDS = 1.0
OLD_SECONDS = 10 * LEASE_SECONDS  # an older file has no holder, even if clocks differ somewhat
RENEWALS_SEEN = 2  # changes that show life; a single one may come from a late cache
COMMAND_CHARACTERS = 120
UNREADABLE = b"unreadable"

_log = logging.getLogger("speechlm.lock")


@dataclasses.dataclass(frozen=True)
class Holder:
    """Contents of the file.

    Attributes:
      token: random name of this holding.
      machine: name that differs between machines, their restarts, and containers, which see other
        processes.
      started: start time of the process, in the machine's own count; "" if unknown.
      since: time at which it took the folder, for people.
      renewals: number of times that the file was written.
    """

    token: str
    host: str
    machine: str
    pid: int
    started: str
    since: str
    command: str
    renewals: int

    def __str__(self) -> str:
        told = f"process {self.pid} on {self.host}, since {self.since}: {self.command}"
        return " ".join(told.split())  # one line, whatever a file or a command holds

    @property
    def lives_here(self) -> bool | None:
        """True if its process runs on this machine, false if not; None for another machine."""
        if self.machine != _machine():
            return None
        return _runs(self.pid, self.started)


class FolderLock:
    """A context in which this process alone writes into a folder.

    Entering it waits, a lease at most, until a holder elsewhere is known to be dead or alive.
    """

    def __init__(self, folder: str | Path, *, mine: bool = True):
        """With `mine=False` it does nothing: another process of the same run holds the folder."""
        self.path = Path(folder) / FILE
        self._mine, self._file, self._made = mine, -1, False
        self._me = Holder(
            token=secrets.token_hex(8),
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=_started(os.getpid()) or "",
            since=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:COMMAND_CHARACTERS],
            renewals=0,
        )
        self._lost = ""
        self._renewed = time.monotonic()
        self._one_at_a_time = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="folder-lock", daemon=True)

    def __enter__(self) -> "FolderLock":
        """Takes the folder, which is created if needed.

        Raises:
          UserError: another process holds it, or it cannot be written.
        """
        if self._mine:
            self._take()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._mine:
            return
        self._ended.set()
        self._thread.join()
        found = _read(self.path)
        if found is not None and self._is_me(found):
            with contextlib.suppress(OSError):
                self.path.unlink()
        os.close(self._file)
        if self._made:
            with contextlib.suppress(OSError):  # unless something is in it
                self.path.parent.rmdir()

    def check(self) -> None:
        """Raises UserError if another process is known to have taken the folder; reads no file."""
        if self._lost:
            raise UserError(self._lost)

    def confirm(self) -> None:
        """Checks that the folder is still this process's; call it before a write.

        While this machine slept, or the network failed, another process may have taken it.

        Raises:
          UserError: another process has taken it, or may have.
        """
        if self._mine:
            error = self._renew()
            self.check()
            away = time.monotonic() - self._renewed
            if error is not None and away > LEASE_SECONDS:
                raise UserError(
                    f"{self.path}: could not be written for {away:.0f} s ({error.strerror}), so "
                    "another process may have taken the folder; the same command goes on"
                )

    def _take(self) -> None:
        watch = _Watch(self.path)
        while not self._create():
            found = _read(self.path)
            if found is None:  # it was released this moment
                time.sleep(POLL_SECONDS / 10)
                continue
            holder = _parse(found)
            lives = None if holder is None else holder.lives_here
            if lives or watch.shows_life(found):
                raise UserError(
                    f"{self.path}: this folder is in use ({holder or 'by another process'}); stop "
                    "that, or use another folder"
                )
            if lives is False or watch.shows_none(found):
                _log.warning("%s: its holder is gone (%s)", self.path, holder or "it does not say")
                self._remove(found)
                continue
            watch.tell(holder)
            time.sleep(POLL_SECONDS)

    def _create(self) -> bool:
        """Creates the file; returns whether it was not there and is this process's now."""
        try:
            self._made |= not self.path.parent.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            if not self.path.parent.is_dir():
                raise UserError(f"{self.path.parent}: is a file; give a folder") from None
            return False
        except OSError as error:
            raise self._unwritable(error) from None
        error = self._renew()
        if error is None and not self._lost:
            return True
        os.close(self._file)
        self._lost = ""
        # a file system that creates files late lets two create the same one; the first stays
        if error is None or error.errno in (errno.ESTALE, errno.ENOENT):
            return False
        with contextlib.suppress(OSError):
            self.path.unlink()
        raise self._unwritable(error)

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"{self.path.parent}: cannot be written ({error.strerror})")

    def _remove(self, dead: bytes) -> None:
        """Removes a dead holder's file and no other; one of several processes does it."""
        claim = self.path.with_name(f"{FILE}.{hashlib.sha256(dead).hexdigest()[:16]}")
        try:
            os.close(os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        except FileExistsError:  # another process is removing it, or was killed here
            with contextlib.suppress(OSError):
                if time.time() - claim.stat().st_mtime > LEASE_SECONDS:
                    claim.unlink()
            time.sleep(POLL_SECONDS / 10)
            return
        try:
            if _read(self.path) == dead:
                self.path.unlink()
        finally:
            claim.unlink(missing_ok=True)

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_SECONDS) and not self._lost:
            self._renew()

    def _renew(self) -> OSError | None:
        """Rewrites the file, and checks that it is this process's; returns the error of a write."""
        with self._one_at_a_time:
            self._me = dataclasses.replace(self._me, renewals=self._me.renewals + 1)
            problem = None
            try:
                # not by its name: that may be another's file by now
                os.pwrite(self._file, json.dumps(configs.to_json(self._me)).encode(), 0)
                os.fsync(self._file)
            except OSError as error:
                problem = error
            found = _read(self.path)
            if found != UNREADABLE and not self._is_me(found or b""):
                by = f"but of {_parse(found)}" if found else "the file is gone"
                self._lost = (
                    f"{self.path}: this folder is no longer this process's, {by}; it stops here, "
                    "and the same command goes on from the last checkpoint"
                )
            elif problem is None:
                self._renewed = time.monotonic()
            return problem

    def _is_me(self, found: bytes) -> bool:
        holder = _parse(found)
        return holder is not None and holder.token == self._me.token


class _Watch:
    """Observations of a file that another machine may be renewing."""

    def __init__(self, path: Path):
        self._path, self._seen, self._changes, self._since = path, b"", -1, 0.0
        self._told = False

    def shows_life(self, found: bytes) -> bool:
        """Returns whether the file has been renewed while watched."""
        if found != self._seen or self._changes < 0:
            self._seen, self._since = found, time.monotonic()
            self._changes += 1
        return self._changes >= RENEWALS_SEEN

    def shows_none(self, found: bytes) -> bool:
        """Returns whether the file has not changed for a lease, or is too old for a live holder."""
        with contextlib.suppress(OSError):
            if time.time() - self._path.stat().st_mtime > OLD_SECONDS:
                return True
        return time.monotonic() - self._since > LEASE_SECONDS

    def tell(self, holder: Holder | None) -> None:
        """Logs once what is waited for."""
        if not self._told:
            self._told = True
            _log.warning(
                "%s: was held by %s; if that is dead, the folder is free within %.0f s",
                self._path,
                holder or "a process that did not say who it is",
                LEASE_SECONDS,
            )


def _read(path: Path) -> bytes | None:
    """Returns the contents of the file; None if it is not there."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError:
        return UNREADABLE


def _parse(found: bytes) -> Holder | None:
    try:
        return configs.from_json(Holder, dict(json.loads(found)))
    except (ValueError, TypeError, RecursionError, UserError):
        return None


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {uuid.getnode():x}"


def _runs(pid: int, started: str) -> bool:
    """Returns whether a process of this machine runs, and is the one that started then."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's, which the machine may hide
        pass
    return pid > 0 and _started(pid) in (started, "")


def _started(pid: int) -> str | None:
    """Returns when a process started; "" if unknown; None if it has ended (a zombie)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return ""
    # the name, in brackets, may hold anything; proc(5) counts its fields from 1
    state, *rest = text.rpartition(")")[2].split()
    return None if state in "ZX" else rest[22 - 4]
