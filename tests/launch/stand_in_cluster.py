"""Stands in for `kubectl` and the cluster behind it: JobSets of pods that are processes here.

Nothing happens by itself: time passes when kubectl asks for the pods. In the cloud's folder:

    pods/NAME   a pod's home, with its log.txt

Loaded after stand_in.py, by conftest.py.
"""

import dataclasses
import json
import os
import re
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import yaml
from jobset_fields import FIELDS, faults
from stand_in import Failed, Refused, known

CONTEXT = "gke_my-project_us-west4_tpus"
LABELS = ("jobset.sigs.k8s.io/jobset-name", "jobset.sigs.k8s.io/job-index",
          "batch.kubernetes.io/job-completion-index")  # fmt: skip


@dataclasses.dataclass
class ClusterPlan:
    """What should happen."""

    pools: int = 1  # of v5e:4x4 with 100 GB disks, a slice each
    queued: int = 0  # so many looks at the JobSet until a queue lets it go
    pending: int = 0  # so many looks at the pods until the nodes are there
    no_image: bool = False  # in the registry
    hiccups: int = 0  # so many questions go without an answer


@dataclasses.dataclass
class Pod:
    """One host's part of a job, and its process once it runs."""

    name: str
    labels: dict[str, str]
    spec: dict[str, Any]
    home: Path
    process: subprocess.Popen | None = None
    waiting: str = ""  # of the container
    unscheduled: str = "not looked at yet"
    lost: bool = False  # with its node

    def phase(self) -> str:
        code = self.process.poll() if self.process else None
        if self.lost or code:
            return "Failed"
        return "Pending" if not self.process else "Running" if code is None else "Succeeded"

    def exit_code(self) -> int | None:
        """A container's, that of a signal is 128 and its number; a lost node tells none."""
        if self.lost or not self.process or self.process.poll() is None:
            return None
        return self.process.returncode if self.process.returncode >= 0 else 137

    def thing(self) -> dict[str, Any]:
        """As the API shows it."""
        code = self.exit_code()
        state = {"running": {}} if code is None else {"terminated": {"exitCode": code}}
        if self.waiting:
            state = {"waiting": {"reason": self.waiting}}
        status: dict[str, Any] = {"phase": self.phase(), "conditions": [{"type": "PodScheduled"}]}
        if self.unscheduled:
            status["conditions"][0]["message"] = self.unscheduled
        elif not self.lost:
            status["containerStatuses"] = [
                {"name": "gke-gcsfuse-sidecar", "state": {"running": {}}},
                {"name": self.spec["containers"][0]["name"], "state": state},
            ]
        return {"metadata": {"name": self.name, "labels": self.labels}, "status": status}

    def end(self, number: int) -> None:
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, number)
            self.process.wait(timeout=10)


class Cluster:
    """One pretended cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan = ClusterPlan()
        self.jobsets: dict[str, dict[str, Any]] = {}
        self.pods: list[Pod] = []
        self.started = 0  # so many pods
        self.known = False  # to kubectl, by get-credentials
        self.lock = threading.Lock()

    def get_credentials(self, _: Path, words: list[str], flags: dict[str, str]):
        context = f"gke_{flags['--project']}_{flags['--location']}_{words[0]}"
        if context != CONTEXT:
            where = f"projects/{flags['--project']}/locations/{flags['--location']}"
            raise Failed(
                f"ResponseError: code=404, message=Not found: {where}/clusters/{words[0]}."
            )
        self.known = True
        return 0, "", "Fetching cluster endpoint and auth data.\n"

    def kubectl(self, folder: Path, words: list[str]) -> tuple[int, str, str]:
        command, rest, flags = known("kubectl", words)
        if not self.known or flags.get("--context") != CONTEXT:
            raise Failed(f'error: context "{flags.get("--context")}" does not exist\n')
        acts = {"apply": self.apply, "get": self.get, "delete": self.delete, "logs": self.logs}
        with self.lock:
            return 0, acts[command](folder, rest, flags), ""

    def apply(self, folder: Path, _: list[str], flags: dict[str, str]) -> str:
        jobset = yaml.safe_load((folder / flags["--filename"]).read_text(encoding="utf-8"))
        if found := faults(jobset, FIELDS):
            raise Failed(f"Error from server (BadRequest): strict decoding error: {found}\n")
        jobset["status"] = {"restarts": 0}
        jobset["spec"]["suspend"] = self.plan.queued > 0
        self.jobsets[jobset["metadata"]["name"]] = jobset
        if not self.plan.queued:
            self.start(jobset)
        return f"jobset.jobset.x-k8s.io/{jobset['metadata']['name']} created\n"

    def start(self, jobset: dict[str, Any]) -> None:
        """New pods for all of its jobs."""
        name = jobset["metadata"]["name"]
        (job,) = jobset["spec"]["replicatedJobs"]
        for number in range(job["replicas"]):
            for index in range(job["template"]["spec"]["completions"]):
                self.started += 1
                pod = f"{name}-{job['name']}-{number}-{index}-{self.started:05}"
                labels = dict(zip(LABELS, (name, str(number), str(index)), strict=True))
                spec = job["template"]["spec"]["template"]["spec"]
                self.pods.append(Pod(pod, labels, spec, self.folder / "pods" / pod))

    def get(self, _: Path, words: list[str], flags: dict[str, str]) -> str:
        if self.plan.hiccups and self.jobsets:
            self.plan.hiccups -= 1
            raise Failed("Unable to connect to the server: net/http: TLS handshake timeout\n")
        if words[0] == "pods":
            self.pass_time()
            things = [pod.thing() for pod in self.selected(flags["--selector"])]
        elif words[0] != "jobset":
            raise Failed(f'error: the server doesn\'t have a resource type "{words[0]}"\n')
        elif words[1] in self.jobsets:
            things = [self.leave_queue(self.jobsets[words[1]])]
        elif "--ignore-not-found" in flags:
            things = []
        else:
            raise Failed(f'Error from server (NotFound): jobsets "{words[1]}" not found\n')
        kind, _, columns = flags["--output"].partition("=")
        if kind != "custom-columns" or "--no-headers" not in flags:
            raise Refused(f"get: {flags}")
        paths = [column.split(":")[1] for column in columns.split(",")]
        return "".join("   ".join(at(thing, path) for path in paths) + "\n" for thing in things)

    def leave_queue(self, jobset: dict[str, Any]) -> dict[str, Any]:
        """When its time has come."""
        if jobset["spec"]["suspend"]:
            self.plan.queued -= 1
            if self.plan.queued == 0:
                jobset["spec"]["suspend"] = False
                self.start(jobset)
        return jobset

    def selected(self, selector: str) -> list[Pod]:
        wanted = dict(pair.split("=") for pair in selector.split(","))
        return [pod for pod in self.pods if wanted.items() <= pod.labels.items()]

    def delete(self, _: Path, words: list[str], flags: dict[str, str]) -> str:
        if self.jobsets.pop(words[1], None) is None:
            if "--ignore-not-found" not in flags:
                raise Failed(f'Error from server (NotFound): jobsets "{words[1]}" not found\n')
            return ""
        self.remove_pods(words[1], signal.SIGTERM)
        return f'jobset.jobset.x-k8s.io "{words[1]}" deleted\n'

    def remove_pods(self, name: str, number: int) -> None:
        for pod in self.selected(f"{LABELS[0]}={name}"):
            pod.end(number)
            self.pods.remove(pod)

    def logs(self, _: Path, words: list[str], flags: dict[str, str]) -> str:
        pods = self.selected(flags["--selector"]) if "--selector" in flags else self.pods
        pods = [pod for pod in pods if not words or pod.name == words[0]]
        if words and not pods:
            raise Failed(f'Error from server (NotFound): pods "{words[0]}" not found\n')
        text = ""
        for pod in pods:
            if not pod.process:
                raise Failed(f'error: container "train" in pod "{pod.name}" is waiting to start\n')
            lines = (pod.home / "log.txt").read_text().splitlines(keepends=True)
            text += "".join(lines[-int(flags["--tail"]) :])
        return text

    def pass_time(self) -> None:
        """What the controllers do: pods run; jobs end; JobSets end or start again."""
        for name, jobset in self.jobsets.items():
            pods = self.selected(f"{LABELS[0]}={name}")
            if (self.folder / "lost_node").exists():
                (self.folder / "lost_node").unlink()
                pods[-1].end(signal.SIGKILL)
                pods[-1].lost = True
            if pods and "terminalState" not in jobset["status"]:
                self.schedule(pods)
                self.judge(jobset, pods)

    def schedule(self, pods: list[Pod]) -> None:
        waiting = [pod for pod in pods if not pod.process]
        if waiting and self.plan.pending:
            self.plan.pending -= 1
        for pod in waiting:
            pod.unscheduled = self.no_node_for(pod)
            if not pod.unscheduled and self.plan.no_image:
                pod.waiting = "ImagePullBackOff" if pod.waiting else "ErrImagePull"
            elif not pod.unscheduled:
                self.run(pod)

    def no_node_for(self, pod: Pod) -> str:
        """Why it cannot be scheduled, in the scheduler's words, or ''."""
        resources = pod.spec["containers"][0]["resources"]
        wanted = [pod.spec["nodeSelector"][f"cloud.google.com/gke-tpu-{what}"]
                  for what in ("accelerator", "topology")]  # fmt: skip
        disk = resources["requests"].get("ephemeral-storage", "0G")
        if wanted != ["tpu-v5-lite-podslice", "4x4"]:
            return "0/4 nodes are available: 4 node(s) didn't match Pod's node affinity/selector."
        if int(disk.removesuffix("G")) > 100:
            return "0/4 nodes are available: 4 Insufficient ephemeral-storage."
        slot = int(pod.labels[LABELS[1]])
        if (
            self.plan.pending
            or slot >= self.plan.pools
            or resources["limits"] != {"google.com/tpu": 4}
        ):
            return "0/4 nodes are available: 4 Insufficient google.com/tpu."
        return ""

    def run(self, pod: Pod) -> None:
        """The container's command; a mount is a path that is put in its place."""
        (container,) = pod.spec["containers"]
        (mount,), (volume,) = container["volumeMounts"], pod.spec["volumes"]
        bucket = self.folder / "buckets" / volume["csi"]["volumeAttributes"]["bucketName"]
        pod.home.mkdir(parents=True)
        words = [
            word.replace(f"{mount['mountPath']}/", f"{bucket}/") for word in container["command"]
        ]
        first = pod.labels[LABELS[1]] == pod.labels[LABELS[2]] == "0"
        pod.waiting = ""
        with (pod.home / "log.txt").open("w") as log:
            pod.process = subprocess.Popen(
                words, cwd=pod.home, start_new_session=True, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT,
                env={
                    "PATH": f"{self.folder / 'image'}:/usr/bin:/bin",
                    "HOME": str(pod.home),
                    "CLOUD": str(self.folder),
                    "WORKER": "slice-w-0" if first else f"slice-w-{pod.name}",
                },
            )  # fmt: skip

    def judge(self, jobset: dict[str, Any], pods: list[Pod]) -> None:
        """By the pod failure policy of the job, then by the failure policy of the JobSet."""
        spec, status = jobset["spec"], jobset["status"]
        if all(pod.phase() == "Succeeded" for pod in pods):
            status["terminalState"] = "Completed"
        if not any(pod.phase() == "Failed" for pod in pods):
            return
        (rule,) = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
        (policy,) = spec["failurePolicy"]["rules"]
        codes = rule["onExitCodes"]
        assert (codes["operator"], rule["action"]) == ("In", "FailJob")
        reason = "BackoffLimitExceeded"
        if any(pod.exit_code() in codes["values"] for pod in pods):
            reason = "PodFailurePolicy"
        ends = policy["action"] == "FailJobSet" and reason in policy["onJobFailureReasons"]
        if ends or status["restarts"] >= spec["failurePolicy"]["maxRestarts"]:
            for pod in pods:
                pod.end(signal.SIGTERM)
            why = "applying FailJobSet failure policy action" if ends else ""
            why = why or "jobset failed due to reaching max number of restarts"
            status |= {
                "terminalState": "Failed",
                "conditions": [{"type": "Failed", "message": why}],
            }
        else:
            self.remove_pods(jobset["metadata"]["name"], signal.SIGTERM)
            status["restarts"] += 1
            self.start(jobset)

    def shut_down(self) -> None:
        for pod in self.pods:
            pod.end(signal.SIGKILL)


def at(thing: Any, path: str) -> str:
    """What stands there, as custom-columns prints it: .field, and [?(@.key=="value")] of a list."""
    steps = re.findall(r'\.([\w/-]+)|\[\?\(@\.(\w+)=="(\w+)"\)\]', path)
    if not re.fullmatch(r'(\.[\w/-]+|\[\?\(@\.\w+=="\w+"\)\])+', path):
        raise Refused(f"path {path}")
    for field, key, value in steps:
        if field:
            thing = thing.get(field)
        else:
            thing = next((item for item in thing if item.get(key) == value), None)
        if thing is None:
            return "<none>"
    return thing if isinstance(thing, str) else json.dumps(thing)
