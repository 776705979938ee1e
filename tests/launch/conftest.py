"""A pretended cloud: stand-ins on the PATH, a small tree to send, and what should happen."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = Path(__file__).with_name("stand_in.py")
SETTINGS = """
project=my-project   # a comment
zone=us-west4-a
accelerator=v5litepod-16
tier=spot
bucket=gs://my-bucket
poll_seconds=0.02
"""

# Writes a step at a time into its folder, as a training does: goes on where it was, ends with 75
# on SIGTERM. The first worker sees to it that what is planned happens.
SPEECHLM = """#!/usr/bin/env bash
set -euo pipefail
echo "$*" >>"$HOME/arguments.txt"
while (($#)); do [[ $1 == --workdir ]] && folder=$2; shift; done
mkdir -p "$folder"
[[ -z ${MEGASCALE_NUM_SLICES:-} ]] || { echo "stale MEGASCALE"; exit 3; }
[[ $WORKER == *-w-0 ]] || { trap 'exit 75' TERM; while [[ ! -f $folder/done ]]; do sleep 0.02; done; exit 0; }
trap 'exit 75' TERM
step=$(cat "$folder/step" 2>/dev/null || echo 0)
while ((step < 6)); do
  step=$((step + 1)); echo "$step" >"$folder/step"; echo "step $step"; sleep 0.02
  event=$(cat "$CLOUD/at_step_$step" 2>/dev/null || true); rm -f "$CLOUD/at_step_$step"
  case $event in
    preempt) touch "$CLOUD/preempt"; sleep 20 ;;
    fail) echo "field data.mixture: no such file"; touch "$folder/done"; exit 2 ;;
    hold) sleep 20 & wait ;;
  esac
done
touch "$folder/done"
"""
WORKER_TOOLS = {
    "hostname": 'echo "$WORKER"',
    "sudo": 'exec "$@"',
    "mountpoint": '[[ -L ${!#} ]]',
    "curl": 'echo "mkdir -p ~/.local/bin && cp $CLOUD/worker_tools/uv_stand_in ~/.local/bin/uv"',
}


@dataclasses.dataclass
class Cloud:
    """The pretended cloud's folder and the tree that `launch` is started from."""

    folder: Path
    tree: Path

    def plan(self, **what) -> None:
        plan = {"unreachable": [], **what}
        (self.folder / "plan.json").write_text(json.dumps(plan))

    def launch(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Runs launch/WORDS; its exit code must be the one that is expected."""
        path = f"{self.folder / 'tools'}:/usr/bin:/bin"
        done = subprocess.run(
            ["bash", f"launch/{words[0]}", *words[1:]],
            cwd=self.tree, capture_output=True, text=True, timeout=60, check=False,
            env={"PATH": path, "HOME": str(self.folder), "CLOUD": str(self.folder)},
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        refused = self.folder / "refused.txt"
        assert not refused.exists(), refused.read_text()
        return done

    def calls(self, *start: str) -> list[list[str]]:
        """The calls that begin so."""
        path = self.folder / "calls.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for line in lines if (call := json.loads(line))[: len(start)] == list(start)]

    def worker(self, number: int, node: str = "speechlm") -> Path:
        return self.folder / "workers" / node / f"w-{number}"


@pytest.fixture
def cloud(tmp_path):
    """A cloud with one bucket and nothing else; what runs in it ends with the test."""
    folder, tree = tmp_path / "cloud", tmp_path / "tree"
    for name in ("requests", "workers", "buckets/my-bucket", "tools", "worker_tools"):
        (folder / name).mkdir(parents=True)
    shutil.copytree(ROOT / "launch", tree / "launch", ignore=shutil.ignore_patterns("settings"))
    for name in ("constraints.txt", "requirements-train.txt", "setup.py"):
        shutil.copy(ROOT / name, tree / name)
    (tree / "launch/settings").write_text(SETTINGS)
    call = f'exec {sys.executable} -I -S {STAND_IN} "${{0##*/}}" "$@"'
    _script(folder / "tools/gcloud", call)
    for name in ("gcsfuse", "fuser"):
        _script(folder / "worker_tools" / name, call)
    _script(folder / "worker_tools/uv_stand_in", call)
    for name, text in WORKER_TOOLS.items():
        _script(folder / "worker_tools" / name, text)
    _script(folder / "worker_tools/speechlm_stand_in", SPEECHLM)
    cloud = Cloud(folder, tree)
    cloud.plan()
    yield cloud
    for pid in folder.glob("workers/*/*/launch_run/pid"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid.read_text()), signal.SIGKILL)


def _script(path: Path, text: str) -> None:
    path.write_text(text if text.startswith("#!") else f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)
