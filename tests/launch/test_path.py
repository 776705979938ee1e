"""From the request for a slice to the results, through a loss, on a pretended cloud."""

import concurrent.futures
import subprocess

import pytest

QUEUE = ("gcloud", "compute", "tpus", "queued-resources")
TRAIN = ("--", "speechlm", "train", "configs/lm_150m.py", "--workdir", "gs://my-bucket/lm")


def test_a_run_from_the_queue_to_the_end(cloud):
    cloud.plan(states=("WAITING_FOR_RESOURCES", "PROVISIONING", "PROVISIONING", "ACTIVE"))
    (cloud.tree / "my_lab.py").write_text("# tasks\n")
    done = cloud.launch("run", "modules=my_lab.py", *TRAIN)
    assert "WAITING_FOR_RESOURCES" in done.stderr and "PROVISIONING" in done.stderr
    # a log that ends in a state's word is none
    assert done.stdout.splitlines()[-1] == "nothing is running"
    assert "launch/slice delete" in done.stderr  # a kept slice costs money
    for number in range(4):
        home = cloud.worker(number)
        assert (home / "speechlm/my_lab.py").exists()
        words = (home / "arguments.txt").read_text().split()
        assert words[-2:] == ["--hosts", "0"]
        assert f"{home}/bucket/lm" in words
    assert logs(cloud, 0) == [(cloud.worker(0) / "launch_run/log.txt").read_text()]
    assert (cloud.folder / "buckets/my-bucket/lm/step").read_text() == "6\n"


@pytest.mark.parametrize("how", ["SUSPENDED", "PREEMPTED"])
def test_a_preempted_run_goes_on_from_its_last_step(cloud, how):
    cloud.plan(preempted=how)
    cloud.at_step(3, "preempt")
    done = cloud.launch("run", *TRAIN)
    assert "was taken" in done.stderr
    assert len(cloud.calls(*QUEUE, "create")) == 2
    # the first life's log is left in the bucket; the second started at step 4
    assert [log.split()[1] for log in logs(cloud, 0)] == ["1", "4"]
    assert (cloud.worker(0) / "launch_run/log.txt").read_text().split()[1] == "4"
    assert (cloud.folder / "buckets/my-bucket/lm/step").read_text() == "6\n"


def test_a_stopped_command_goes_on_without_a_new_slice(cloud):
    cloud.at_step(2, "hold")
    bring_up(cloud)
    cloud.launch("slice", "stop")
    assert logs(cloud, 0) == ["step 1\nstep 2\n"]
    status = cloud.launch("slice", "status").stdout
    assert status.count(" exit 75") == 4
    cloud.launch("run", *TRAIN)
    assert (cloud.folder / "buckets/my-bucket/lm/step").read_text() == "6\n"
    assert len(cloud.calls(*QUEUE, "create")) == 1
    # one log a start, though the host's own goes on
    assert [log.splitlines()[0] for log in logs(cloud, 0)] == ["step 1", "step 3"]


def test_steps_one_at_a_time_do_nothing_twice(cloud):
    bring_up(cloud)
    cloud.launch("slice", "create")
    assert len(cloud.calls(*QUEUE, "create")) == 1
    installed = len(cloud.calls("uv", "pip"))
    cloud.launch("slice", "setup")
    # the packages are there; only the code of each worker is installed again
    assert len(cloud.calls("uv", "pip")) == installed + 4
    cloud.wait_for((cloud.folder / "buckets/my-bucket/lm/done").exists)
    assert "step 6" in cloud.launch("slice", "logs").stdout
    cloud.launch("slice", "fetch", "results=fetched", "--", "gs://my-bucket/lm")
    assert (cloud.tree / "fetched/lm/step").read_text() == "6\n"
    cloud.launch("slice", "delete")
    assert "is gone" in cloud.launch("slice", "delete").stderr
    assert not cloud.stand_in.requests


def test_a_run_that_is_watched_again_is_not_touched(cloud):
    cloud.at_step(2, "hold")
    bring_up(cloud)
    other = cloud.launch("run", *TRAIN, "train.total_steps=9", code=1)
    assert "runs another command: speechlm train configs/lm_150m.py" in other.stderr
    cloud.launch("slice", "start", *TRAIN)  # nothing happens
    copies = len(cloud.calls(*QUEUE, "scp"))
    asked = len(cloud.calls(*QUEUE, "ssh"))
    with concurrent.futures.ThreadPoolExecutor() as threads:
        again = threads.submit(cloud.launch, "run", *TRAIN)
        cloud.wait_for(lambda: len(cloud.calls(*QUEUE, "ssh")) > asked + 2)
        (cloud.folder / "release").touch()
    assert "runs already" in again.result().stderr
    assert len(cloud.calls(*QUEUE, "scp")) == copies
    assert (cloud.worker(0) / "launch_run/log.txt").read_text().split().count("6") == 1


def test_what_holds_the_chips_is_ended_before_the_start(cloud):
    for verb in ("create", "wait", "sync", "setup"):
        cloud.launch("slice", verb)
    holder = subprocess.Popen(["sleep", "60"])
    home = cloud.worker(2)
    (home / "dev/accel0").write_text(str(holder.pid))
    (home / "libtpu_lockfile").touch()
    cloud.launch("slice", "start", *TRAIN)
    assert holder.wait(timeout=5) < 0
    assert not (home / "libtpu_lockfile").exists()


def test_two_slices_are_named_and_all_their_workers_start(cloud):
    bring_up(cloud, "slices=2")
    (call,) = cloud.calls(*QUEUE, "create")
    assert {"--node-count=2", "--node-prefix=speechlm"} <= set(call)
    for node in ("speechlm-0", "speechlm-1"):
        assert all((cloud.worker(number, node) / "launch_run/pid").exists() for number in range(4))


def test_other_verbs_run_on_the_first_worker_and_come_back(cloud):
    words = ("speechlm", "prepare", "lab", "--out", "runs/data")
    cloud.launch("run", "results=back", "when_done=delete", "--", *words)
    assert (cloud.tree / "back/data/step").read_text() == "6\n"
    installs = [call for call in cloud.calls("uv", "pip") if ".[tpu]" in call]
    assert len(installs) == 1
    assert not cloud.stand_in.requests


def logs(cloud, number):
    """What the bucket has of a worker's logs, by their start."""
    folder = cloud.folder / "buckets/my-bucket/logs/speechlm"
    return [path.read_text() for path in sorted(folder.glob(f"speechlm-w-{number}-*.txt"))]


def bring_up(cloud, *settings):
    for verb in ("create", "wait", "sync", "setup"):
        cloud.launch("slice", verb, *settings)
    cloud.launch("slice", "start", *settings, *TRAIN)
    homes = [
        home
        for request in cloud.stand_in.requests.values()
        for home in cloud.stand_in.homes(request)
    ]
    cloud.wait_for(lambda: all((home / "arguments.txt").exists() for home in homes))
    cloud.wait_for(lambda: not (cloud.folder / "at_step_2").exists())
