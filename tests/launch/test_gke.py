"""The manifests that launch/gke/submit applies: fields that JobSet knows, numbers that agree."""

import copy
import itertools
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from speechlm_jax.planner.slices import CUBES, SQUARES

HERE = Path(__file__).resolve().parent
GOLDENS = sorted(HERE.glob("goldens/gke_submit*.txt"))


@pytest.fixture(params=GOLDENS, ids=lambda path: path.stem)
def manifest(request):
    text = request.param.read_text(encoding="utf-8")
    (found,) = re.findall(r"<<'YAML'\n(.*?)\nYAML\n", text, re.S)
    return yaml.safe_load(found)


def job_of(manifest):
    (job,) = manifest["spec"]["replicatedJobs"]
    return job, job["template"]["spec"]


def test_fields_are_those_of_jobset(manifest, stand_ins):
    fields = sys.modules["jobset_fields"]
    assert fields.faults(manifest, fields.FIELDS) == []
    wrong = copy.deepcopy(manifest)
    wrong["spec"]["network"]["enableDNSHostname"] = True
    assert fields.faults(wrong, fields.FIELDS) == [".spec.network.enableDNSHostname: no such field"]


def test_hosts_and_chips_are_those_of_the_slice(manifest):
    job, spec = job_of(manifest)
    pod = spec["template"]["spec"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(int(side) for side in topology.split("x"))
    (container,) = pod["containers"]
    assert spec["parallelism"] == spec["completions"]
    assert spec["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == chips
    assert pod["hostNetwork"] == (job["replicas"] > 1)
    replica = f"train.mesh.replica={job['replicas']}"
    assert job["replicas"] == 1 or replica in container["command"]


def test_the_command_is_ours(manifest):
    _, spec = job_of(manifest)
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    # 75 (stopped after saving) and 137 (followed another host down) are tried again
    assert rule["onExitCodes"]["values"] == [1, 2]
    program, *words = container["command"]
    assert program == "speechlm"
    assert words[words.index("--hosts") + 1] == "0"  # GKE says how many
    (mount,) = container["volumeMounts"]
    assert words[words.index("--workdir") + 1].startswith(mount["mountPath"] + "/")
    assert mount["name"] in [volume["name"] for volume in pod["volumes"]]


def test_the_mount_is_for_several_hosts_and_for_the_pods_user(manifest):
    job, spec = job_of(manifest)
    pod = spec["template"]["spec"]
    (volume,) = pod["volumes"]
    attributes = volume["csi"]["volumeAttributes"]
    options = dict(option.partition("=")[::2] for option in attributes["mountOptions"].split(","))
    # On a TPU's machine gcsfuse takes -1 (for ever) where nothing is said.
    assert 0 <= int(options["metadata-cache-ttl-secs"]) <= 60
    assert options["metadata-cache-negative-ttl-secs"] == "0"
    assert int(options["rename-dir-limit"]) > 10_000  # files of a checkpoint
    user = pod["securityContext"]
    assert (int(options["uid"]), int(options["gid"])) == (user["runAsUser"], user["runAsGroup"])
    dockerfile = (HERE.parents[1] / "launch/gke/Dockerfile").read_text(encoding="utf-8")
    assert f"\nUSER {user['runAsUser']}:{user['runAsGroup']}\n" in dockerfile
    # https://github.com/GoogleCloudPlatform/gcs-fuse-csi-driver/blob/5fcdc04/docs/authentication.md
    assert attributes["hostNetworkPodKSA"] == ("true" if pod["hostNetwork"] else "false")


# Each would end a line of YAML, a string or a placeholder if it went in as it is.
HOSTILE = [
    "x\n  privileged: true", "x\rprivileged", 'a"\n#', "{{image}}", "{{nothing}}", "a: b # c",
    "\\x41", "'", "", "- [", "\t", "\x1b[31m", "\x7f", "&amp", "*", "§ é \U0001f600", "%{}|>",
    "true", "~",
]  # fmt: skip


def test_a_command_is_in_the_manifest_word_for_word(cloud):
    words = ["speechlm", "train", "c.py", "--workdir", "/bucket/a", *HOSTILE, "--hosts", "0"]
    done = cloud.launch("gke/submit", "--dry-run", "--", *words)
    (found,) = re.findall(r"<<'YAML'\n(.*?)\nYAML\n", done.stdout, re.S)
    _, spec = job_of(yaml.safe_load(found))
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"] == words


NAMES = "image namespace service_account region cluster project name topology bucket".split()
NO_NAMES = ["x\nprivileged: true", "x y", "x: y", 'x"', "-x", "$(id)", "{{name}}"]


@pytest.mark.parametrize(
    ("setting", "value"),
    [*itertools.zip_longest(NAMES, NO_NAMES, fillvalue="x\ty"), *(("image", x) for x in NO_NAMES)],
)
def test_a_setting_that_is_no_name_is_refused(cloud, setting, value):
    done = cloud.launch("gke/submit", "--dry-run", f"{setting}={value}", "--", "speechlm", code=2)
    (line,) = done.stderr.splitlines()
    assert setting in line and not done.stdout


# chip: its cores or chips a slice, what GKE calls it, topology, hosts, machine
SLICES = """
v4-8 tpu-v4-podslice 2x2x1 1 ct4p-hightpu-4t
v4-128 tpu-v4-podslice 4x4x4 16 ct4p-hightpu-4t
v5p-64 tpu-v5p-slice 2x4x4 8 ct5p-hightpu-4t
v5p-2048 tpu-v5p-slice 8x8x16 256 ct5p-hightpu-4t
v5litepod-1 tpu-v5-lite-podslice 1x1 1 ct5lp-hightpu-1t
v5litepod-8 tpu-v5-lite-podslice 2x4 1 ct5lp-hightpu-8t
v5litepod-32 tpu-v5-lite-podslice 4x8 8 ct5lp-hightpu-4t
v6e-8 tpu-v6e-slice 2x4 1 ct6e-standard-8t
v6e-256 tpu-v6e-slice 16x16 64 ct6e-standard-4t
"""


def test_an_accelerator_says_its_slice():
    script = """
      . launch/lib/shell.sh; . launch/lib/settings.sh; . launch/lib/gke_settings.sh
      for accelerator; do
        topology=; plan_slice; echo "$accelerator $label $topology $hosts $machine"
      done"""
    names = [line.split()[0] for line in SLICES.split("\n") if line]
    done = subprocess.run(
        ["bash", "-euc", script, "-", *names],
        cwd=HERE.parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == SLICES.lstrip()


def test_slices_are_those_of_the_planner():
    """Two tables of the same shapes: bash cannot import the one, nor Python the other."""
    script = """
      . launch/lib/shell.sh; . launch/lib/settings.sh; . launch/lib/gke_settings.sh
      for chips in "${!FLAT[@]}"; do echo "flat $chips ${FLAT[$chips]}"; done
      for chips in "${!CUBES[@]}"; do echo "cube $chips ${CUBES[$chips]}"; done"""
    done = subprocess.run(
        ["bash", "-euc", script], cwd=HERE.parents[1], capture_output=True, text=True, check=True
    )
    flat = {f"flat {chips} {shape}" for chips, shape in SQUARES.items()}
    assert {*done.stdout.splitlines()} == flat | {f"cube {n} {x}" for n, x in CUBES.items()}
