"""A dry run prints every command and does nothing; what it prints stands in goldens/.

To write the goldens anew: WRITE_GOLDENS=1 python -m pytest tests/launch/test_dry_run.py
"""

import os
import re
import shlex
from pathlib import Path

import pytest

GOLDENS = Path(__file__).with_name("goldens")
TRAIN = ("--", "speechlm", "train", "configs/lm_1b5.py", "--workdir", "gs://my-bucket/lm")
CASES = {
    "run_spot": [("run", *TRAIN)],
    "run_two_slices": [
        ("run", "accelerator=v6e-64", "slices=2", "tier=reserved", "internal_ips=yes",
         "network=tpus", "subnetwork=tpus", "queue_hours=48", *TRAIN, "train.mesh.replica=2"),
    ],
    "run_reservation": [
        ("run", "accelerator=v5p-128", "tier=reserved", "reservation=ours", "when_done=delete",
         *TRAIN),
    ],
    "run_on_one_host": [
        ("run", "accelerator=v6e-8", "tier=flex-start", "max_run_hours=4", "results=back",
         "bucket=", "service_account=tpu@my-project.iam.gserviceaccount.com",
         "--", "speechlm", "evaluate", "runs/lm", "--out", "runs/figures"),
    ],
    "run_disk_gb": [
        ("run", "disk_gb=200", *TRAIN, "data.mixture=gs://other-bucket/x.mixture.json"),
        ("run", "disk_gb=200", *TRAIN, "--disk-gb=50", "train.init_from=gs://my-bucket/base"),
    ],
    "gke_submit": [
        ("gke/submit", *TRAIN, "data.mixture=gs://my-bucket/data/x.mixture.json",
         'evals=["it\'s"]'),
    ],
    "gke_submit_two_slices": [
        ("gke/submit", "name=two", "accelerator=v6e-64", "slices=2", "namespace=lab", "disk_gb=200",
         "restarts=9", *TRAIN, "data.mixture=gs://my-bucket/x.mixture.json",
         "train.mesh.replica=2"),
    ],
    "gke_steps": [
        ("gke/submit", "status"), ("gke/submit", "logs", "--", "50", "-f"),
        ("gke/submit", "delete"),
    ],
    "slice": [
        ("slice", "create", "tier=on-demand", "accelerator=v4-32"), ("slice", "wait"),
        ("slice", "sync"), ("slice", "setup", "--", "full"),
        ("slice", "start", "--", "python", "-c", 'print("it\'s")'),
        ("slice", "status"), ("slice", "logs", "--", "50", "-f"), ("slice", "stop"),
        ("slice", "fetch", "--", "gs://my-bucket/lm"), ("slice", "fetch", "--", "runs/lm"),
        ("slice", "delete"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_dry_run_prints_the_golden_and_does_nothing(cloud, stand_ins, case):
    before = sorted(cloud.tree.rglob("*"))
    printed = ""
    for script, *words in CASES[case]:
        printed += f"# launch/{shlex.join([script, *words])}\n"
        printed += cloud.launch(script, "--dry-run", *words).stdout
    assert not cloud.calls()
    assert sorted(cloud.tree.rglob("*")) == before
    commands = re.sub(r"<<'YAML'\n.*?\nYAML\n", "\n", printed, flags=re.S)
    for line in commands.splitlines():
        tool, *words = shlex.split(line, comments=True) or ["#"]
        if tool in ("gcloud", "kubectl"):
            stand_ins.known(tool, words)
        else:
            assert tool in ("#", "mkdir", "tar", "cat")
    golden = GOLDENS / f"{case}.txt"
    if os.environ.get("WRITE_GOLDENS"):
        golden.write_text(printed, encoding="utf-8")
    assert printed == golden.read_text(encoding="utf-8")


def test_a_dry_run_of_a_run_shows_what_the_run_then_does(cloud):
    """But for the looks at the queue and the workers, which are as many as it takes."""
    dry = cloud.launch("run", "--dry-run", *TRAIN).stdout.splitlines()
    cloud.launch("run", *TRAIN)
    called = [call for call in cloud.calls("gcloud") if "describe" not in call]
    shown = [call for line in dry if (call := shlex.split(line))[0] == "gcloud"]
    shown = [call for call in shown if "describe" not in call]
    assert [call for call in shown if "status.sh" not in call[-1]] == [
        call for call in called if "status.sh" not in call[-1]
    ]
