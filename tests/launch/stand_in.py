"""Stands in for `gcloud` and a worker's tools: acts on folders and processes of this machine.

The tools on the PATH are three lines of bash that ask the server here, which runs in a thread of
the test: a Python process for every call would take most of the tests' time. In the cloud's folder:

    workers/NODE/w-N   a worker's home        buckets/NAME   a bucket

A command or flag that flags.json lacks is refused with exit code 64.
"""

import dataclasses
import json
import os
import re
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
from pathlib import Path

FLAGS = json.loads(Path(__file__).with_name("flags.json").read_text(encoding="utf-8"))
WORKERS = 4

# Sends the tool's name, its folder and words; gets exit code, standard output and error.
CLIENT = """#!/usr/bin/env bash
exec 3<>/dev/tcp/127.0.0.1/{port}
printf '%s\\0' $(($# + 2)) "${{0##*/}}" "$PWD" "$@" >&3
IFS= read -r -d '' code <&3; IFS= read -r -d '' out <&3; IFS= read -r -d '' err <&3
printf '%s' "$out"; printf '%s' "$err" >&2; exit "$code"
"""


class Refused(Exception):
    """A command, a flag or a value that the tool does not have."""


class Failed(Exception):
    """What the tool itself answers with an error."""

    def __init__(self, error: str, code: int = 1) -> None:
        super().__init__(error)
        self.code = code


@dataclasses.dataclass
class Request:
    """A queued resource: its nodes, the states still to come, whether its machines were taken."""

    nodes: list[str]
    states: list[str]
    preempted: bool = False


@dataclasses.dataclass
class Plan:
    """What should happen."""

    states: tuple[str, ...] = ("ACTIVE",)
    quota: str = ""  # refuses the creation
    failed: str = ""  # why a request is FAILED
    preempted: str = "SUSPENDED"  # what a preemption shows: the request's state, or the node's
    unreachable: tuple[str, ...] = ()  # NODE/w-N
    read_only: bool = False  # the buckets, for workers
    no_index: bool = False  # no package can be installed
    hiccups: int = 0  # so many questions about the request go without an answer


def known(tool: str, words: list[str]) -> tuple[str, list[str], dict[str, str]]:
    """The command, its other words and its flags; anything else is refused."""
    commands = [name for name in FLAGS[tool] if " ".join(words).startswith(name)]
    if not commands:
        raise Refused(f"{tool} has no command {words}")
    command = max(commands, key=len)
    wide = FLAGS[tool].get("everywhere", {}).get("flags", "")
    allowed = f"{FLAGS[tool][command]['flags']} {wide}".split()
    rest = words[len(command.split()) :]
    flags = dict(word.partition("=")[::2] for word in rest if word.startswith("-"))
    for flag in flags:
        if flag not in allowed:
            raise Refused(f"{tool} {command} has no flag {flag}")
    return command, [word for word in rest if not word.startswith("-")], flags


class StandIn:
    """One pretended cloud."""

    def __init__(self, folder: Path, cluster) -> None:
        self.folder = folder
        self.cluster = cluster  # of stand_in_cluster.py
        self.plan = Plan()
        self.requests: dict[str, Request] = {}
        self.calls: list[list[str]] = []
        self.refused: list[str] = []
        self.tools = {
            "gcloud": self.gcloud, "kubectl": cluster.kubectl, "gcsfuse": self.gcsfuse,
            "uv": self.uv, "fuser": fuser,
        }  # fmt: skip

    def answer(self, tool: str, folder: Path, words: list[str]) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        self.calls.append([tool, *words])
        try:
            return self.tools[tool](folder, words)
        except Failed as error:
            return error.code, "", str(error)
        except Refused as error:
            self.refused.append(str(error))
            return 64, "", str(error)

    def gcloud(self, folder: Path, words: list[str]) -> tuple[int, str, str]:
        command, rest, flags = known("gcloud", words)
        acts = {
            "queued-resources create": self.create,
            "queued-resources describe": self.describe_request,
            "queued-resources delete": self.delete,
            "queued-resources ssh": self.ssh,
            "queued-resources scp": self.scp,
            "tpu-vm describe": self.describe_node,
            "storage buckets describe": self.describe_bucket,
            "storage rsync": self.rsync,
            "clusters get-credentials": self.cluster.get_credentials,
        }
        (act,) = [act for name, act in acts.items() if command.endswith(name)]
        try:
            return act(folder, rest, flags)
        except Failed as error:  # as gcloud says it
            raise Failed(
                f"ERROR: (gcloud.{command.replace(' ', '.')}) {error}\n", error.code
            ) from None

    def request(self, name: str) -> Request:
        if name not in self.requests:
            raise Failed(f"NOT_FOUND: Resource 'queuedResources/{name}' was not found.")
        return self.requests[name]

    def create(self, _: Path, words: list[str], flags: dict[str, str]):
        (name,) = words
        if name in self.requests:
            raise Failed(f"ALREADY_EXISTS: Resource 'queuedResources/{name}' already exists")
        if self.plan.quota:
            raise Failed(self.plan.quota)
        for needed in ("--accelerator-type", "--runtime-version", "--zone", "--project"):
            if not flags.get(needed):
                raise Refused(f"create without {needed}")
        if ("--node-id" in flags) == ("--node-count" in flags):
            raise Refused("create: exactly one of --node-id and --node-count")
        prefix = flags.get("--node-prefix", "")
        nodes = [f"{prefix}-{index}" for index in range(int(flags.get("--node-count", 0)))]
        self.requests[name] = Request(nodes or [flags["--node-id"]], list(self.plan.states))
        return 0, "", "Create request issued\n"

    def describe_request(self, _: Path, words: list[str], flags: dict[str, str]):
        request = self.request(words[0])
        if self.plan.hiccups and (self.folder / "buckets/my-bucket/lm/step").exists():
            self.plan.hiccups -= 1
            raise Failed("UNAVAILABLE: The service is currently unavailable.")
        if flags["--format"] == "value(state.failedData.error.message)":
            return 0, f"{self.plan.failed}\n", ""
        if flags["--format"] != "value(state.state)":
            raise Refused(f"format {flags['--format']}")
        if (self.folder / "preempt").exists():
            self.preempt(request)
        state = request.states[0]
        if len(request.states) > 1:
            del request.states[0]
        elif state == "ACTIVE" and not request.preempted:
            for home in self.homes(request):
                (home / "dev").mkdir(parents=True, exist_ok=True)
        return 0, f"{state}\n", ""

    def preempt(self, request: Request) -> None:
        """The machines go without a notice; `PREEMPTED` leaves the request ACTIVE."""
        (self.folder / "preempt").unlink()
        for home in self.homes(request):
            end_run(home)
        request.preempted = True
        if self.plan.preempted == "SUSPENDED":
            request.states = ["SUSPENDING", "SUSPENDED"]

    def delete(self, _: Path, words: list[str], flags: dict[str, str]):
        request = self.request(words[0])
        if "--quiet" not in flags:
            raise Refused("delete without --quiet would ask")
        if "--force" not in flags:
            raise Failed("FAILED_PRECONDITION: the queued resource has nodes")
        for home in self.homes(request):
            end_run(home)
        del self.requests[words[0]]
        return 0, "", "Deleted\n"

    def describe_node(self, _: Path, words: list[str], flags: dict[str, str]):
        for request in self.requests.values():
            if words[0] in request.nodes:
                if "networkEndpoints" in flags["--format"]:
                    return 0, ";".join(f"10.0.0.{number}" for number in range(WORKERS)) + "\n", ""
                return 0, "PREEMPTED\n" if request.preempted else "READY\n", ""
        raise Failed(f"NOT_FOUND: Resource 'nodes/{words[0]}' was not found")

    def homes(self, request: Request, node: str = "all", worker: str = "all") -> list[Path]:
        return [
            self.folder / "workers" / name / f"w-{number}"
            for index, name in enumerate(request.nodes)
            for number in range(WORKERS)
            if node in ("all", str(index)) and worker in ("all", str(number))
        ]

    def reached(self, name: str, flags: dict[str, str]) -> tuple[list[Path], str]:
        """The workers that a command goes to, without those that do not answer; what ssh says."""
        there = self.homes(self.request(name), flags.get("--node", "0"), flags.get("--worker", "0"))
        up = [h for h in there if f"{h.parent.name}/{h.name}" not in self.plan.unreachable]
        said = "Retrying: SSH command error: [/usr/bin/ssh] exited with return code [255].\n"
        return up, "" if up == there else said

    def ssh(self, _: Path, words: list[str], flags: dict[str, str]):
        """On all workers at once."""
        there, said = self.reached(words[0], flags)
        running = [
            subprocess.Popen(
                ["bash", "-c", flags["--command"]], cwd=home, env=self.environment(home), text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
            for home in there
        ]  # fmt: skip
        texts = [process.communicate()[0] for process in running]
        codes = [process.returncode for process in running]
        for worker, code in enumerate(codes):
            if code:
                said += (
                    f"##### Command execution on worker {worker} failed with exit status {code}.\n"
                )
        return 255 if len(there) == 0 or "255" in said else max(codes), "".join(texts), said

    def environment(self, home: Path) -> dict[str, str]:
        """Nothing of this machine's, but what an older job has left behind."""
        return {
            "PATH": f"{self.folder / 'worker_tools'}:/usr/bin:/bin",
            "HOME": str(home),
            "CLOUD": str(self.folder),
            "WORKER": f"{home.parent.name}-{home.name}",
            "MEGASCALE_NUM_SLICES": "7",
            "LAUNCH_DEVICES": str(home / "dev"),
            "LAUNCH_LOCKFILE": str(home / "libtpu_lockfile"),
            "LAUNCH_CLEAR_SECONDS": "0",
            "LAUNCH_LOG_SECONDS": "0.1",
        }

    def scp(self, folder: Path, words: list[str], flags: dict[str, str]):
        source, target = words
        if ":" in source:
            name, _, path = source.partition(":")
            (home,), _ = self.reached(name, flags)
            shutil.copytree(home / path, folder / target / Path(path).name)
            return 0, "", ""
        name, _, path = target.partition(":")
        there, said = self.reached(name, flags)
        for home in there:
            shutil.copy(folder / source, home / path)
        return 255 if said else 0, "", said

    def bucket(self, address: str) -> Path:
        return self.folder / "buckets" / address.removeprefix("gs://")

    def describe_bucket(self, _: Path, words: list[str], flags: dict[str, str]):
        if not self.bucket(words[0]).is_dir():
            raise Failed(f"{words[0]} not found: 404.")
        return 0, f"{words[0]}\n", ""

    def rsync(self, folder: Path, words: list[str], flags: dict[str, str]):
        shutil.copytree(self.bucket(words[0]), folder / words[1], dirs_exist_ok=True)
        return 0, "", ""

    def gcsfuse(self, _: Path, words: list[str]):
        """A mount is a link; into nowhere, where a worker may only read."""
        _, (name, target), _ = known("gcsfuse", words)
        Path(target).rmdir()
        Path(target).symlink_to(self.bucket(f"nowhere/{name}" if self.plan.read_only else name))
        return 0, "", ""

    def uv(self, _: Path, words: list[str]):
        command, rest, _ = known("uv", words)
        if self.plan.no_index and command == "pip install":
            raise Failed("error: Failed to fetch\n")
        if command == "venv":
            tools = Path(rest[-1]) / "bin"
            tools.mkdir(parents=True)
            shutil.copy(self.folder / "worker_tools/speechlm_stand_in", tools / "speechlm")
            (tools / "python").symlink_to(sys.executable)
        return 0, "", ""


def fuser(_: Path, words: list[str]) -> tuple[int, str, str]:
    """Who has a file open: the process whose number stands in it."""
    files = [Path(word) for word in words if not word.startswith("-")]
    pids = [int(text) for path in files if path.is_file() and (text := path.read_text().strip())]
    alive = [pid for pid in pids if re.search(r"State:\s+[^Z]", _status(pid))]
    if "-k" in words:
        name = next(word[1:] for word in words if word in ("-TERM", "-KILL"))
        for pid in alive:
            os.kill(pid, signal.Signals[f"SIG{name}"])
    return 0 if alive else 1, "", ""


def _status(pid: int) -> str:
    path = Path(f"/proc/{pid}/status")
    return path.read_text() if path.exists() else ""


def end_run(home: Path) -> None:
    """Kills what runs on a worker, the command and those who wait for it, and empties its disk."""
    path = home / "launch_run/keeper"
    if path.exists() and not (home / "launch_run/exit").exists():
        try:
            os.killpg(os.getpgid(int(path.read_text())), signal.SIGKILL)
        except ProcessLookupError:
            pass
    while home.exists():  # who dies may still write
        shutil.rmtree(home, ignore_errors=True)


def serve(stand_in: StandIn) -> socketserver.ThreadingTCPServer:
    """Answers the tools, in a thread, until it is shut down."""

    class Handler(socketserver.StreamRequestHandler):
        def word(self) -> str:
            text = b""
            while (byte := self.rfile.read(1)) != b"\0":
                text += byte
            return text.decode()

        def handle(self) -> None:
            tool, folder, *words = (self.word() for _ in range(int(self.word())))
            code, out, err = stand_in.answer(tool, Path(folder), words)
            self.wfile.write(f"{code}\0{out}\0{err}\0".encode())

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    return server
