"""Stands in for `gcloud` and for a worker's tools: acts on folders and processes of this machine.

Called as `stand_in.py TOOL WORD...` with the folder of a pretended cloud in $CLOUD:

    calls.txt          every call, one line of JSON each
    plan.json          what should happen: states, quota, unreachable, ...
    requests/NAME      one queued resource: its create flags and the states still to come
    workers/NODE/w-N   a worker's home        buckets/NAME   a bucket

A command or flag that flags.json lacks is refused with exit code 64, and so are values that the
tools would not take where our scripts depend on it.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ["CLOUD"])
FLAGS = json.loads((Path(__file__).parent / "flags.json").read_text(encoding="utf-8"))
WORKERS = 4


def known(tool: str, words: list[str]) -> tuple[str, list[str], dict[str, str]]:
    """The command, its other words and its flags; anything else ends the process."""
    commands = [name for name in FLAGS[tool] if " ".join(words).startswith(name)]
    if not commands:
        refuse(f"{tool}: no such command: {words}")
    command = max(commands, key=len)
    rest = words[len(command.split()) :]
    allowed = FLAGS[tool][command]["flags"] + " " + FLAGS[tool].get("everywhere", {}).get("flags", "")
    flags = dict(word.partition("=")[::2] for word in rest if word.startswith("-"))
    for flag in flags:
        if flag not in allowed.split():
            refuse(f"{tool} {command}: no such flag: {flag}")
    return command, [word for word in rest if not word.startswith("-")], flags


def refuse(why: str) -> None:
    sys.stderr.write(f"stand-in: {why}\n")
    with (CLOUD / "refused.txt").open("a") as file:
        file.write(why + "\n")
    sys.exit(64)


def error(command: str, why: str, code: int = 1) -> None:
    """As gcloud says it."""
    sys.stderr.write(f"ERROR: (gcloud.{command.replace(' ', '.')}) {why}\n")
    sys.exit(code)


def plan() -> dict:
    return json.loads((CLOUD / "plan.json").read_text())


def request(name: str) -> Path:
    return CLOUD / "requests" / name


def read_request(command: str, name: str) -> dict:
    if not request(name).exists():
        error(command, f"NOT_FOUND: Resource 'queuedResources/{name}' was not found. This command")
    return json.loads(request(name).read_text())


def create(command: str, words: list[str], flags: dict[str, str]) -> None:
    (name,) = words
    if request(name).exists():
        error(command, f"ALREADY_EXISTS: Resource 'queuedResources/{name}' already exists")
    if quota := plan().get("quota"):
        error(command, quota)
    for needed in ("--accelerator-type", "--runtime-version", "--zone", "--project"):
        if not flags.get(needed):
            refuse(f"create: {needed} is missing")
    if ("--node-id" in flags) == ("--node-count" in flags):
        refuse("create: exactly one of --node-id and --node-count")
    nodes = [flags.get("--node-id", "")]
    if count := int(flags.get("--node-count", 0)):
        nodes = [f"{flags['--node-prefix']}-{index}" for index in range(count)]
    states = plan().get("states") or ["ACTIVE"]
    request(name).write_text(json.dumps({"nodes": nodes, "states": states, "preempted": False}))


def describe_request(command: str, words: list[str], flags: dict[str, str]) -> None:
    state = read_request(command, words[0])
    if flags["--format"] == "value(state.failedData.error.message)":
        print(plan().get("failed", ""))
        return
    assert flags["--format"] == "value(state.state)"
    if (CLOUD / "preempt").exists():
        preempt(state, plan().get("preempted", "SUSPENDED"))
    now = state["states"][0]
    if len(state["states"]) > 1:
        del state["states"][0]
    elif now == "ACTIVE" and not state["preempted"]:
        for home in homes(state):
            (home / "dev").mkdir(parents=True, exist_ok=True)
    request(words[0]).write_text(json.dumps(state))
    print(now)


def preempt(state: dict, how: str) -> None:
    """The machines go without a notice; `PREEMPTED` leaves the request ACTIVE."""
    (CLOUD / "preempt").unlink()
    for home in homes(state):
        if (pid := home / "launch_run/pid").exists():
            kill(int(pid.read_text()))
        shutil.rmtree(home)
    state["preempted"] = True
    state["states"] = ["ACTIVE"] if how == "PREEMPTED" else ["SUSPENDING", "SUSPENDED"]


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def delete(command: str, words: list[str], flags: dict[str, str]) -> None:
    state = read_request(command, words[0])
    if "--quiet" not in flags:
        refuse("delete: it would ask")
    if "--force" not in flags:
        error(command, "FAILED_PRECONDITION: the queued resource has nodes")
    for home in homes(state):
        shutil.rmtree(home, ignore_errors=True)
    request(words[0]).unlink()


def describe_node(command: str, words: list[str], flags: dict[str, str]) -> None:
    for path in (CLOUD / "requests").iterdir():
        state = json.loads(path.read_text())
        if words[0] in state["nodes"]:
            if "networkEndpoints" in flags["--format"]:
                print(";".join(f"10.0.0.{worker}" for worker in range(WORKERS)))
            else:
                print("PREEMPTED" if state["preempted"] else "READY")
            return
    error(command, f"NOT_FOUND: Resource 'nodes/{words[0]}' was not found")


def homes(state: dict, node: str = "all", worker: str = "all") -> list[Path]:
    return [
        CLOUD / "workers" / name / f"w-{number}"
        for index, name in enumerate(state["nodes"])
        for number in range(WORKERS)
        if node in ("all", str(index)) and worker in ("all", str(number))
    ]


def reached(command: str, name: str, flags: dict[str, str]) -> tuple[list[Path], bool]:
    """The workers that a command goes to, without those that cannot be reached."""
    state = read_request(command, name)
    there = homes(state, flags.get("--node", "0"), flags.get("--worker", "0"))
    lost = [home for home in there if f"{home.parent.name}/{home.name}" in plan()["unreachable"]]
    if lost:
        sys.stderr.write("Retrying: SSH command error: [/usr/bin/ssh] exited with return code [255].\n")
    return [home for home in there if home not in lost], bool(lost)


def ssh(command: str, words: list[str], flags: dict[str, str]) -> None:
    there, lost = reached(command, words[0], flags)
    running = [
        subprocess.Popen(
            ["bash", "-c", flags["--command"]], cwd=home, env=environment(home), stdin=subprocess.DEVNULL
        )
        for home in there
    ]
    codes = [process.wait() for process in running]
    for worker, code in enumerate(codes):
        if code:
            sys.stderr.write(f"##### Command execution on worker {worker} failed with exit status {code}.")
            sys.stderr.write(" Continuing.\n")
    sys.exit(255 if lost else max(codes))


def environment(home: Path) -> dict[str, str]:
    """Nothing of this machine's, but what a job of old has left behind."""
    tools = CLOUD / "worker_tools"
    return {
        "PATH": f"{tools}:/usr/bin:/bin",
        "HOME": str(home),
        "CLOUD": str(CLOUD),
        "WORKER": f"{home.parent.name}-{home.name}",
        "MEGASCALE_NUM_SLICES": "7",
        "LAUNCH_DEVICES": str(home / "dev"),
        "LAUNCH_LOCKFILE": str(home / "libtpu_lockfile"),
        "LAUNCH_CLEAR_SECONDS": "0",
        "LAUNCH_STOP_SECONDS": "5",
    }


def scp(command: str, words: list[str], flags: dict[str, str]) -> None:
    source, target = words
    if ":" in source:
        (home,), _ = reached(command, source.partition(":")[0], flags)
        shutil.copytree(home / source.partition(":")[2], Path(target) / Path(source).name)
        return
    name, _, path = target.partition(":")
    there, lost = reached(command, name, flags)
    for home in there:
        shutil.copy(source, home / path)
    sys.exit(255 if lost else 0)


def bucket(command: str, words: list[str], flags: dict[str, str]) -> None:
    if not (CLOUD / "buckets" / words[0].removeprefix("gs://")).is_dir():
        error(command, f"HTTPError 404: {words[0]} not found: 404.")


def rsync(command: str, words: list[str], flags: dict[str, str]) -> None:
    source = CLOUD / "buckets" / words[0].removeprefix("gs://")
    shutil.copytree(source, words[1], dirs_exist_ok=True)


GCLOUD = {
    "queued-resources create": create,
    "queued-resources describe": describe_request,
    "queued-resources delete": delete,
    "queued-resources ssh": ssh,
    "queued-resources scp": scp,
    "tpu-vm describe": describe_node,
    "storage buckets describe": bucket,
    "storage rsync": rsync,
}


def gcloud(words: list[str]) -> None:
    command, rest, flags = known("gcloud", words)
    (act,) = [act for name, act in GCLOUD.items() if command.endswith(name)]
    act(command, rest, flags)


def gcsfuse(words: list[str]) -> None:
    """A mount is a link; into nowhere, where a worker may only read."""
    _, (name, target), _ = known("gcsfuse", words)
    source = CLOUD / "buckets" / ("nowhere/" if plan().get("read_only") else "") / name
    Path(target).rmdir()
    Path(target).symlink_to(source)


def uv(words: list[str]) -> None:
    command, rest, _ = known("uv", words)
    if command == "venv":
        tools = Path(rest[-1]) / "bin"
        tools.mkdir(parents=True)
        shutil.copy(CLOUD / "worker_tools/speechlm_stand_in", tools / "speechlm")
        (tools / "python").symlink_to(sys.executable)


def fuser(words: list[str]) -> None:
    """Who has a file open: the process whose number stands in it."""
    files = [Path(word) for word in words if not word.startswith("-")]
    pids = [int(text) for path in files if path.is_file() and (text := path.read_text().strip())]
    alive = [pid for pid in pids if re.search(r"State:\s+[^Z]", status(pid))]
    if "-k" in words:
        name = next(word[1:] for word in words if word in ("-TERM", "-KILL"))
        for pid in alive:
            os.kill(pid, signal.Signals[f"SIG{name}"])
    sys.exit(0 if alive else 1)


def status(pid: int) -> str:
    path = Path(f"/proc/{pid}/status")
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    tool, *arguments = sys.argv[1:]
    with (CLOUD / "calls.txt").open("a") as calls:
        calls.write(json.dumps([tool, *arguments]) + "\n")
    {"gcloud": gcloud, "gcsfuse": gcsfuse, "uv": uv, "fuser": fuser}[tool](arguments)
