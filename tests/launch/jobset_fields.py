"""The fields of a JobSet, as far as our manifest goes.

Written down on 2026-11-21 from the reference of JobSet v1alpha2
(https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/) and of Kubernetes' Job and Pod
(https://kubernetes.io/docs/reference/kubernetes-api/); on that day the goldens were also valid
against the whole CustomResourceDefinition of kubernetes-sigs/jobset at 08dfbdf.
"""

# A type, the values that are allowed, [what a list holds], or an object's fields. `*`: any key.
CONTAINER = {
    "name": str, "image": str, "args": [str], "command": [str],
    "env": [{"name": str, "value": str}],
    "resources": {"limits": {"google.com/tpu": int}, "requests": {"ephemeral-storage": str}},
    "volumeMounts": [{"name": str, "mountPath": str}],
}  # fmt: skip
POD = {
    "metadata": {"annotations": {"*": str}},
    "spec": {
        "restartPolicy": {"Never", "OnFailure"}, "serviceAccountName": str, "hostNetwork": bool,
        "dnsPolicy": {"ClusterFirst", "ClusterFirstWithHostNet"},
        "terminationGracePeriodSeconds": int,
        "securityContext": {"runAsUser": int, "runAsGroup": int, "fsGroup": int},
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
