"""What goes wrong on a cloud ends with one line that says what, and an exit code."""

import pytest

QUEUE = ("gcloud", "compute", "tpus", "queued-resources")
TRAIN = ("--", "speechlm", "train", "configs/lm_150m.py", "--workdir", "gs://my-bucket/lm")


def last_line(done):
    return done.stderr.splitlines()[-1]


def test_quota_refused_when_asking(cloud):
    cloud.plan(quota="RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepod' has been exceeded. Limit: 0")
    done = cloud.launch("run", *TRAIN, code=1)
    assert last_line(done) == (
        "launch: cannot create speechlm: RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepod' has been "
        "exceeded. Limit: 0"
    )


def test_quota_refused_in_the_queue(cloud):
    cloud.plan(states=("WAITING_FOR_RESOURCES", "FAILED"), failed="Quota exhausted")
    done = cloud.launch("run", *TRAIN, code=1)
    assert last_line(done) == "launch: speechlm failed: Quota exhausted"


def test_a_failed_request_gives_way_to_the_next(cloud):
    cloud.plan(states=("FAILED",))
    cloud.launch("slice", "create")
    cloud.plan()
    cloud.launch("slice", "create")
    cloud.launch("slice", "wait")
    assert len(cloud.calls(*QUEUE, "delete")) == 1


@pytest.mark.parametrize("verb", ["sync", "setup"])
def test_a_worker_that_cannot_be_reached_is_named(cloud, verb):
    for step in ("create", "wait", "sync"):
        cloud.launch("slice", step)
    cloud.plan(unreachable=("speechlm/w-2",))
    done = cloud.launch("slice", verb, code=1)
    assert last_line(done).endswith(": cannot reach worker 2 of slice 0")


def test_a_worker_that_is_lost_from_sight_ends_the_watching(cloud):
    cloud.at_step(2, "hold")
    for step in ("create", "wait", "sync", "setup"):
        cloud.launch("slice", step)
    cloud.launch("slice", "start", *TRAIN)
    cloud.plan(unreachable=("speechlm/w-1", "speechlm/w-3"))
    done = cloud.launch("run", *TRAIN, code=1)
    assert "cannot reach worker 1 of slice 0, worker 3 of slice 0" in last_line(done)


def test_a_bucket_that_is_not_there_is_refused_before_the_slice(cloud):
    done = cloud.launch("run", "bucket=gs://no-such-bucket", "--", "speechlm", "evaluate", code=1)
    assert last_line(done).startswith("launch: bucket gs://no-such-bucket: ")
    assert not cloud.calls(*QUEUE, "create")


def test_a_bucket_that_workers_cannot_write_to(cloud):
    cloud.plan(read_only=True)
    done = cloud.launch("run", *TRAIN, code=1)
    line = last_line(done)
    assert line.startswith("launch: set-up: worker speechlm-w-")
    assert "cannot write to gs://my-bucket" in line


def test_a_log_that_the_bucket_does_not_take_is_no_failure_of_the_run(cloud):
    (cloud.folder / "buckets/my-bucket/logs").write_text("in the way")
    cloud.launch("run", *TRAIN)
    log = (cloud.worker(0) / "launch_run/log.txt").read_text()
    assert "step 6" in log and "cannot copy this log into the bucket" in log


def test_a_command_that_fails_is_not_tried_again(cloud):
    cloud.at_step(2, "fail")
    done = cloud.launch("run", *TRAIN, code=2)
    assert "field data.mixture: no such file" in done.stderr
    assert "exit code 2" in last_line(done)
    assert len(cloud.calls(*QUEUE, "create")) == 1


def test_a_package_that_cannot_be_had_is_tried_again_the_next_time(cloud):
    cloud.plan(no_index=True)
    done = cloud.launch("run", *TRAIN, code=1)
    assert last_line(done).endswith("cannot install the packages")
    cloud.plan()
    cloud.launch("run", *TRAIN)


@pytest.mark.parametrize(("hiccups", "code"), [(3, 0), (5, 1)])
def test_the_cloud_may_be_silent_for_a_while(cloud, hiccups, code):
    cloud.plan(hiccups=hiccups)
    done = cloud.launch("run", *TRAIN, code=code)
    assert code == 0 or "UNAVAILABLE" in last_line(done)


def test_a_start_that_reached_some_hosts_only_is_made_good(cloud):
    for step in ("create", "wait", "sync", "setup"):
        cloud.launch("slice", step)
    cloud.plan(unreachable=("speechlm/w-2",))
    cloud.launch("slice", "start", *TRAIN, code=1)
    assert not (cloud.worker(2) / "launch_run").exists()
    cloud.wait_for((cloud.worker(0) / "arguments.txt").exists)
    cloud.plan()
    cloud.launch("run", *TRAIN)
    assert (cloud.worker(2) / "arguments.txt").exists()


def test_losses_have_an_end(cloud):
    cloud.at_step(2, "preempt")
    done = cloud.launch("run", "restarts=0", *TRAIN, code=1)
    assert "one more than restarts=0" in last_line(done)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["project="], "project and zone are needed"),
        (["accelerator=v7-8"], "accelerator 'v7-8'"),
        (["colour=red"], "there is no setting 'colour'"),
        (["project name=x"], "there is no setting 'project name'"),
        (["tier=cheap"], "tier 'cheap'"),
        (["tier=flex-start"], "max_run_hours"),
        (["bucket=my-bucket"], "give gs://NAME"),
        (["modules=nothing.py"], "there is no nothing.py"),
        (["poll_seconds=soon"], "poll_seconds 'soon'"),
        (["--fast"], "no option --fast"),
        (["--settings", "nowhere"], "there is no nowhere"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(cloud, words, said):
    done = cloud.launch("run", *words, *TRAIN, code=2)
    assert said in last_line(done)
    assert not cloud.calls()


def test_training_on_several_hosts_needs_a_folder_that_all_see(cloud):
    words = ("--", "speechlm", "train", "configs/lm_150m.py")
    assert "--workdir" in last_line(cloud.launch("run", *words, code=2))
    cloud.launch("run", "--dry-run", "accelerator=v5litepod-8", *words)
    other = cloud.launch("run", *words, "--workdir", "gs://other/lm", code=2)
    assert "only the bucket of the settings" in last_line(other)
