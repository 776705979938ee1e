"""A pretended cloud: stand-ins on the PATH, a small tree to send, and what should happen."""

import dataclasses
import importlib.util
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = """
project=my-project   # a comment
zone=us-west4-a
accelerator=v5litepod-16
tier=spot
bucket=gs://my-bucket
poll_seconds=0.02
"""
GKE_SETTINGS = """
project=my-project
region=us-west4
cluster=tpus
image=us-west4-docker.pkg.dev/my-project/speechlm/speechlm:1
accelerator=v5litepod-16
bucket=gs://my-bucket
poll_seconds=0.02
"""

# Writes a step at a time into its folder, as a training does: goes on where it was, ends with 75
# on SIGTERM. The first worker sees to it that what is planned happens.
SPEECHLM = """#!/usr/bin/env bash
set -euo pipefail
trap 'exit 75' TERM
echo "$*" >>"$HOME/arguments.txt"
while (($#)); do [[ $1 == --workdir || $1 == --out ]] && folder=$2; shift; done
mkdir -p "$folder"
[[ -z ${MEGASCALE_NUM_SLICES:-} ]] || { echo "stale MEGASCALE"; exit 3; }
[[ $WORKER == *-w-0 ]] || { while [[ ! -f $folder/done ]]; do sleep 0.05; done; exit 0; }
step=$(cat "$folder/step" 2>/dev/null || echo 0)
while ((step < 6)); do
  step=$((step + 1)); echo "$step" >"$folder/step"; echo "step $step"; sleep 0.02
  event=$(cat "$CLOUD/at_step_$step" 2>/dev/null || true); rm -f "$CLOUD/at_step_$step"
  case $event in
    # what reached the bucket is what is left of a host's log
    preempt) until cat ~/bucket/logs/*/"$WORKER"-*.txt | grep -q "step $step"; do sleep 0.05; done
             touch "$CLOUD/preempt"; sleep 20 ;;
    lose_node) touch "$CLOUD/lost_node"; sleep 20 ;;
    fail) echo "field data.mixture: no such file"; touch "$folder/done"; exit 2 ;;
    crash) echo "error: out of memory"; exit 1 ;;
    hold) until [[ -f $CLOUD/release ]]; do sleep 0.02; done ;;
  esac
done
touch "$folder/done"
echo "nothing is running"
"""
WORKER_TOOLS = {
    "hostname": 'echo "$WORKER"',
    "sudo": 'exec "$@"',
    "mountpoint": "[[ -L ${!#} ]]",
    "curl": 'echo "mkdir -p ~/.local/bin && cp $CLOUD/worker_tools/uv_stand_in ~/.local/bin/uv"',
}


@dataclasses.dataclass
class Cloud:
    """A pretended cloud and the tree that `launch` is started from."""

    folder: Path
    tree: Path
    stand_in: Any

    def plan(self, **what) -> None:
        """What should happen; fields of `stand_in.Plan`."""
        self.stand_in.plan = type(self.stand_in.plan)(**what)

    def launch(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Runs launch/WORDS; its exit code must be the one that is expected."""
        done = subprocess.run(
            ["bash", f"launch/{words[0]}", *words[1:]],
            cwd=self.tree, capture_output=True, text=True, timeout=60, check=False,
            env={"PATH": f"{self.folder / 'tools'}:/usr/bin:/bin", "HOME": str(self.folder)},
        )  # fmt: skip
        assert not self.stand_in.refused
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def calls(self, *start: str) -> list[list[str]]:
        """The calls that begin so."""
        return [call for call in self.stand_in.calls if call[: len(start)] == list(start)]

    def plan_cluster(self, **what) -> None:
        """The same for the cluster; fields of `stand_in_cluster.ClusterPlan`."""
        cluster = self.stand_in.cluster
        cluster.plan = type(cluster.plan)(**what)

    def at_step(self, step: int, event: str) -> None:
        """What happens there: preempt, lose_node, fail (2), crash (1), hold (until `release`)."""
        (self.folder / f"at_step_{step}").write_text(event)

    def wait_for(self, happened: Callable[[], bool]) -> None:
        """Ten seconds at most."""
        for _ in range(1000):
            if happened():
                return
            time.sleep(0.01)
        raise AssertionError("it did not happen")

    def worker(self, number: int, node: str = "speechlm") -> Path:
        """The home of a worker."""
        return self.folder / "workers" / node / f"w-{number}"


@pytest.fixture(scope="session")
def stand_ins():
    """The module stand_in.py, and those beside it: tests are no package."""
    for name in ("stand_in", "jobset_fields", "stand_in_cluster"):
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules["stand_in"]


@pytest.fixture
def cloud(tmp_path, stand_ins):
    """A cloud with one bucket and nothing else; what runs in it ends with the test."""
    folder, tree = tmp_path / "cloud", tmp_path / "tree"
    for name in ("workers", "buckets/my-bucket", "tools", "worker_tools", "image"):
        (folder / name).mkdir(parents=True)
    shutil.copytree(ROOT / "launch", tree / "launch", ignore=shutil.ignore_patterns("settings"))
    for name in ("constraints.txt", "requirements-train.txt", "setup.py"):
        shutil.copy(ROOT / name, tree / name)
    (tree / "launch/settings").write_text(SETTINGS)
    (tree / "launch/gke/settings").write_text(GKE_SETTINGS)
    cluster = sys.modules["stand_in_cluster"].Cluster(folder)
    stand_in = stand_ins.StandIn(folder, cluster)
    server = stand_ins.serve(stand_in)
    client = stand_ins.CLIENT.format(port=server.server_address[1])
    for name in ("gcloud", "kubectl"):
        _script(folder / "tools" / name, client)
    for name in ("gcsfuse", "fuser"):
        _script(folder / "worker_tools" / name, client)
    _script(folder / "worker_tools/uv_stand_in", client)
    for name, text in WORKER_TOOLS.items():
        _script(folder / "worker_tools" / name, text)
    _script(folder / "worker_tools/speechlm_stand_in", SPEECHLM)
    _script(folder / "image/speechlm", SPEECHLM)
    yield Cloud(folder, tree, stand_in)
    server.shutdown()
    server.server_close()
    cluster.shut_down()
    for home in folder.glob("workers/*/*"):
        stand_ins.end_run(home)


def _script(path: Path, text: str) -> None:
    path.write_text(text if text.startswith("#!") else f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)
