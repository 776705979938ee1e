"""The manifests for GKE: fields that JobSet knows, numbers that agree, commands that we have.

FIELDS was written down on 2026-11-21 from the reference of JobSet v1alpha2
(https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/) and of Kubernetes' Job and Pod
(https://kubernetes.io/docs/reference/kubernetes-api/), as far as the manifests go; on that day they
were also valid against the whole CustomResourceDefinition of kubernetes-sigs/jobset at 08dfbdf.
"""

import math
from pathlib import Path

import pytest
import yaml

from speechlm_jax.cli import main

GKE = Path(__file__).resolve().parents[2] / "launch/gke"
MANIFESTS = sorted(GKE.glob("jobset*.yaml"))

# A type, the values that are allowed, [what a list holds], or an object's fields. `*`: any key.
CONTAINER = {
    "name": str, "image": str, "args": [str], "command": [str],
    "env": [{"name": str, "value": str}],
    "resources": {"limits": {"google.com/tpu": int}},
    "volumeMounts": [{"name": str, "mountPath": str}],
}  # fmt: skip
POD = {
    "metadata": {"annotations": {"*": str}},
    "spec": {
        "restartPolicy": {"Never", "OnFailure"}, "serviceAccountName": str, "hostNetwork": bool,
        "dnsPolicy": {"ClusterFirst", "ClusterFirstWithHostNet"},
        "terminationGracePeriodSeconds": int,
        "nodeSelector": {"*": str}, "containers": [CONTAINER],
        "volumes": [{"name": str, "csi": {"driver": str, "volumeAttributes": {"*": str}}}],
    },
}  # fmt: skip
JOB = {
    "completionMode": {"Indexed"}, "parallelism": int, "completions": int, "backoffLimit": int,
    "podFailurePolicy": {
        "rules": [{
            "action": {"FailJob", "Ignore", "Count", "FailIndex"},
            "onExitCodes": {"containerName": str, "operator": {"In", "NotIn"}, "values": [int]},
        }],
    },
    "template": POD,
}  # fmt: skip
FIELDS = {
    "apiVersion": {"jobset.x-k8s.io/v1alpha2"}, "kind": {"JobSet"},
    "metadata": {"name": str, "annotations": {"*": str}},
    "spec": {
        "network": {"enableDNSHostnames": bool, "publishNotReadyAddresses": bool, "subdomain": str},
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [{
                "name": str,
                "action": {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"},
                "onJobFailureReasons": [{
                    "BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes",
                    "MaxFailedIndexesExceeded", "PodFailurePolicy",
                }],
            }],
        },
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB}}],
    },
}  # fmt: skip


def faults(value, allowed, where="") -> list[str]:
    if isinstance(allowed, type):
        return [] if type(value) is allowed else [f"{where}: {value!r} is no {allowed.__name__}"]
    if isinstance(allowed, set):
        return [] if value in allowed else [f"{where}: {value!r}"]
    if isinstance(allowed, list):
        return sum((faults(item, allowed[0], f"{where}[]") for item in value), [])
    if not isinstance(value, dict):
        return [f"{where}: {value!r} is no object"]
    found = []
    for key, item in value.items():
        kind = allowed.get(key, allowed.get("*"))
        found += faults(item, kind, f"{where}.{key}") if kind else [f"{where}.{key}: no such field"]
    return found


@pytest.fixture(params=MANIFESTS, ids=lambda path: path.stem)
def manifest(request):
    return yaml.safe_load(request.param.read_text(encoding="utf-8"))


def job_of(manifest):
    (job,) = manifest["spec"]["replicatedJobs"]
    return job, job["template"]["spec"]


def test_fields_are_those_of_jobset(manifest):
    assert faults(manifest, FIELDS) == []
    manifest["spec"]["network"]["enableDNSHostname"] = True
    assert faults(manifest, FIELDS) == [".spec.network.enableDNSHostname: no such field"]


def test_hosts_and_chips_are_those_of_the_slice(manifest):
    job, spec = job_of(manifest)
    pod = spec["template"]["spec"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(int(side) for side in topology.split("x"))
    (container,) = pod["containers"]
    assert spec["parallelism"] == spec["completions"]
    assert spec["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == chips
    replica = f"train.mesh.replica={job['replicas']}"
    assert job["replicas"] == 1 or replica in container["args"]


def test_the_command_is_ours(manifest):
    _, spec = job_of(manifest)
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    parsed = main.parse(container["args"])
    assert parsed.hosts == 0  # GKE says how many
    (mount,) = container["volumeMounts"]
    assert str(parsed.workdir).startswith(mount["mountPath"] + "/")
    assert mount["name"] in [volume["name"] for volume in pod["volumes"]]
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    # 75 (stopped after saving) and 137 (followed another host down) are tried again
    assert rule["onExitCodes"]["values"] == [1, 2]
