"""launch/gke/submit from the queue to the end, through a lost node, on a pretended cluster."""

import concurrent.futures

import pytest

TRAIN = ("--", "speechlm", "train", "configs/lm_150m.py", "--workdir", "gs://my-bucket/lm")


def submit(cloud, *words, code=0):
    return cloud.launch("gke/submit", *words, code=code)


def last_line(done):
    return done.stderr.splitlines()[-1]


def steps(cloud):
    return (cloud.folder / "buckets/my-bucket/lm/step").read_text()


def applied(cloud):
    return len(cloud.calls("kubectl", "apply"))


def pods(cloud):
    return sorted(path.name for path in cloud.folder.glob("pods/*"))


def test_a_run_from_the_queue_to_the_end(cloud):
    cloud.plan_cluster(queued=2, pending=4)
    done = submit(cloud, *TRAIN)
    assert "suspended: a queue of the cluster holds it" in done.stderr
    assert "4 Pending: 0/4 nodes are available: 4 Insufficient google.com/tpu." in done.stderr
    assert "4 Running" in done.stderr
    assert done.stdout.splitlines()[-1] == "nothing is running"
    assert "cost money" in last_line(done)
    assert len(pods(cloud)) == 4
    for home in cloud.folder.glob("pods/*"):
        words = (home / "arguments.txt").read_text().split()
        assert words[-2:] == ["--hosts", "0"]
        assert f"{cloud.folder}/buckets/my-bucket/lm" in words
    assert steps(cloud) == "6\n"


def test_a_lost_node_starts_all_pods_again_from_the_last_step(cloud):
    cloud.at_step(3, "lose_node")
    done = submit(cloud, *TRAIN)
    assert "JobSet starts all pods again (1 of 50)" in done.stderr
    assert len(pods(cloud)) == 8
    second = cloud.folder / "pods/speechlm-slice-0-0-00005/log.txt"
    assert second.read_text().split()[1] == "4"
    assert steps(cloud) == "6\n"
    assert applied(cloud) == 1


def test_losses_have_an_end(cloud):
    cloud.at_step(2, "lose_node")
    done = submit(cloud, "restarts=0", *TRAIN, code=1)
    assert last_line(done) == (
        "launch: speechlm failed: jobset failed due to reaching max number of restarts"
    )


def test_a_command_that_fails_ends_with_its_code_and_is_started_anew_when_asked(cloud):
    cloud.at_step(2, "crash")
    done = submit(cloud, *TRAIN, code=1)
    assert done.stderr.splitlines()[-2] == "error: out of memory"
    assert "exit code 1 (speechlm-slice-0-0-00001)" in last_line(done)
    assert "has ended (Failed); it is started anew" in submit(cloud, *TRAIN).stderr
    assert steps(cloud) == "6\n"


def test_what_runs_is_watched_again_and_not_touched(cloud):
    cloud.at_step(2, "hold")
    with concurrent.futures.ThreadPoolExecutor() as threads:
        first = threads.submit(submit, cloud, *TRAIN)
        cloud.wait_for((cloud.folder / "buckets/my-bucket/lm/step").exists)
        other = submit(cloud, "image=other:2", *TRAIN, code=1)
        assert "runs something else: 1 x v5litepod-16, us-west4-docker.pkg.dev" in other.stderr
        status = submit(cloud, "status")
        assert "speechlm: Active, 0 restarts: 1 x" in status.stderr
        assert status.stdout.count("Running") == 4
        assert submit(cloud, "logs", "--", "1").stdout in ("step 1\n", "step 2\n")
        connected, asks = ("gcloud", "container", "clusters"), ("kubectl", "get", "pods")
        before = len(cloud.calls(*connected))
        again = threads.submit(submit, cloud, *TRAIN)
        cloud.wait_for(lambda: len(cloud.calls(*connected)) > before)
        asked = len(cloud.calls(*asks))
        cloud.wait_for(lambda: len(cloud.calls(*asks)) > asked + 8)
        (cloud.folder / "release").touch()
    assert "runs already" in again.result().stderr and first.result()
    assert applied(cloud) == 1
    assert len(pods(cloud)) == 4


def test_a_run_that_is_deleted_is_stopped_and_deleting_twice_is_no_error(cloud):
    cloud.at_step(2, "hold")
    with concurrent.futures.ThreadPoolExecutor() as threads:
        watched = threads.submit(submit, cloud, *TRAIN, code=75)
        cloud.wait_for((cloud.folder / "buckets/my-bucket/lm/step").exists)
        submit(cloud, "delete")
    assert "was deleted: the command is stopped" in last_line(watched.result())
    submit(cloud, "delete")
    assert submit(cloud, "status").stderr == "launch: speechlm: ABSENT\n"


def test_an_image_that_cannot_be_pulled_ends_the_watching(cloud):
    cloud.plan_cluster(no_image=True)
    done = submit(cloud, *TRAIN, code=1)
    assert "4 Pending: ErrImagePull" in done.stderr
    assert "ImagePullBackOff: cannot pull us-west4-docker.pkg.dev/my-project/" in last_line(done)


def test_a_slice_that_the_cluster_has_not_says_why_it_waits(cloud):
    for setting, why in (("accelerator=v6e-16", "node affinity"), ("disk_gb=200", "ephemeral")):
        with concurrent.futures.ThreadPoolExecutor() as threads:
            watched = threads.submit(submit, cloud, setting, *TRAIN, code=75)
            asked = len(cloud.calls("kubectl", "logs"))
            cloud.wait_for(lambda asked=asked: len(cloud.calls("kubectl", "logs")) > asked)
            submit(cloud, "delete")
        assert why in watched.result().stderr


def test_two_slices_have_a_node_pool_each(cloud):
    cloud.plan_cluster(pools=2)
    submit(cloud, "slices=2", *TRAIN)
    assert len(pods(cloud)) == 8


def test_a_cluster_that_is_not_there(cloud):
    done = submit(cloud, "cluster=other", *TRAIN, code=1)
    assert last_line(done).startswith("launch: cluster other: ResponseError: code=404")


@pytest.mark.parametrize(("hiccups", "code"), [(3, 0), (5, 1)])
def test_the_cluster_may_be_silent_for_a_while(cloud, hiccups, code):
    cloud.plan_cluster(hiccups=hiccups)
    done = submit(cloud, *TRAIN, code=code)
    assert code == 0 or "Unable to connect to the server" in last_line(done)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cluster="], "project, region, cluster, image and bucket are needed"),
        (["zone=us-west4-a"], "there is no setting 'zone'"),
        (["accelerator=v5litepod-12"], "its shape is not known"),
        (["accelerator=v5p-64", "topology=4x4x4"], "is not that of v5p-64 (32 chips)"),
        (["accelerator=v6e-8", "slices=2"], "each needs more than one host"),
        (["disk_gb=much"], "disk_gb 'much'"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(cloud, words, said):
    done = submit(cloud, *words, *TRAIN, code=2)
    assert said in last_line(done)
    assert not cloud.calls()


def test_other_verbs_need_a_slice_of_one_host(cloud):
    words = ("--", "speechlm", "evaluate", "gs://my-bucket/lm")
    assert "program of one host" in last_line(submit(cloud, *words, code=2))
    submit(cloud, "--dry-run", "accelerator=v6e-8", *words)


def test_the_cluster_refuses_what_the_real_one_would(cloud):
    """Otherwise the tests above prove nothing: a wrong flag, path, field."""
    cluster, stand_in = cloud.stand_in.cluster, cloud.stand_in
    cluster.known = True
    here = "--context=gke_my-project_us-west4_tpus"
    ask = lambda *words: stand_in.answer("kubectl", cloud.tree, [*words, here])  # noqa: E731
    assert ask("get", "pods", "--colour")[0] == 64
    assert ask("get", "jobset", "a", "--no-headers", "--output=custom-columns=A:status")[0] == 1
    (cloud.tree / "wrong.yaml").write_text("{kind: JobSet, spec: {replicas: 1}}")
    code, _, error = ask("apply", "--filename=wrong.yaml")
    assert code == 1 and "spec.replicas: no such field" in error
    assert stand_in.refused.pop() and not stand_in.refused
