"""Rows of a bucket are those of the folder, whatever the limit; what is wrong there is one line."""

import gc
import itertools
import json
import resource
import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest

from speechlm_jax import artifacts, bucket
from speechlm_jax.data import bucket_rows, mixture
from speechlm_jax.data.bucket_rows import BucketRows, RowFetcher
from speechlm_jax.data.plan import MixturePlan, Phase
from speechlm_jax.data.rows import RowShards
from speechlm_jax.data.stream import make_batches, read_batches
from speechlm_jax.errors import UserError

LENGTH = 4096  # about 10 KB a row
TASKS = {"a": [120, 1, 180], "b": [270], "c": [90, 90, 90, 90]}
SMALL = 2.5  # megabytes
MB = 1e-3  # of a limit in GB


@pytest.fixture(scope="module")
def written(tmp_path_factory, write_mixture):
    return write_mixture(tmp_path_factory.mktemp("rows"), TASKS, length=LENGTH)


@pytest.fixture
def remote(pail, written):
    """The same mixture in the bucket."""
    pail.folder = written.parent.parent
    return f"pail://{written.parent.name}/{written.name}"


@pytest.fixture
def copied(pail, write_task):
    """A folder of rows in the bucket, to be damaged."""
    write_task(pail.folder / "rows", [20, 20], length=LENGTH)
    return pail.folder / "rows"


@pytest.fixture
def make_fetcher(tmp_path):
    made = []

    def make(megabytes):
        made.append(RowFetcher(disk_gb=megabytes * MB, folder=tmp_path / "cache"))
        return made[-1]

    yield make
    for fetcher in made:
        fetcher.close()


def blocks(folder) -> int:
    return sum(path.stat().st_blocks for path in folder.rglob("*")) * 512


def make_plan(shards) -> MixturePlan:
    """Some epochs of each task, in two phases."""
    return MixturePlan(
        mixture.task_rows(shards),
        (Phase("p", (320, 200, 100)), Phase("q", (290, 180, 380))),
        seed=3,
    )


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("counts", [[1], [3, 0, 500], [700]])
@pytest.mark.parametrize("length", [8, 1024])
def test_every_row_is_the_local_one(pail, write_task, make_fetcher, counts, length):
    write_task(pail.folder / "rows", counts, length=length)
    here = RowShards(pail.folder / "rows")
    there = RowShards("pail://rows", fetcher=make_fetcher(SMALL))
    assert (len(there), there.fingerprint, there.counts) == (
        len(here), here.fingerprint, here.counts,
    )  # fmt: skip
    order = np.random.default_rng(0).permutation(len(here)).tolist()
    there.expect(order)
    for number in order:
        assert_same(there[number], here[number])
    with pytest.raises(IndexError):
        there[len(here)]


def test_a_corpus_larger_than_the_limit_streams_within_it(pail, remote, written, make_fetcher):
    local = mixture.open_shards(written)
    fetcher = make_fetcher(SMALL)
    shards = mixture.open_shards(remote, fetcher=fetcher)
    size = sum(path.stat().st_size for path in written.parent.rglob("train/*.arrayrecord"))
    assert size > 3 * fetcher.cache.limit
    plan = make_plan(local)
    expected = make_batches(plan, local, batch_size=15)(0)
    pail.requests.clear()
    for found in make_batches(plan, shards, batch_size=15)(0):
        assert_same(found, next(expected))
        assert 0 < blocks(fetcher.cache.folder) <= fetcher.cache.limit
    assert next(expected, None) is None
    # what is read is what is needed: rows, and once a file its offsets and its tail
    rows = [request for request in pail.requests if request[1] is not None]
    assert len(rows) <= plan.num_rows + sum(map(len, TASKS.values()))
    assert len(pail.requests) - len(rows) == sum(map(len, TASKS.values()))


def test_rows_that_are_here_are_not_fetched_again(pail, remote, make_fetcher):
    shards = mixture.open_shards(remote, fetcher=make_fetcher(20))["b"]
    for _ in range(2):
        for number in range(270):
            assert shards[number]["ids"].shape == (LENGTH,)
    asked = [(start, end) for _, start, end in pail.requests if start is not None]
    assert len(asked) == len(set(asked)) == 270 + 1


def test_rows_are_fetched_ahead_of_need_and_many_at_once(pail, remote, make_fetcher):
    shards = mixture.open_shards(remote, fetcher=make_fetcher(20))
    pail.latency = 0.05
    batches = make_batches(make_plan(shards), shards, batch_size=4, prefetch=0)(0)
    for _ in range(40):  # 160 rows, eight seconds one after the other
        next(batches)
    assert pail.most_at_once > 32
    asked = {request for request in pail.requests if request[1] is not None}
    assert len(asked) > 160 + 64


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_and_restarts_see_the_local_stream(remote, written, make_fetcher, hosts):
    local = mixture.open_shards(written)
    plan, each = make_plan(local), []
    for host in range(hosts):
        shards = mixture.open_shards(remote, fetcher=make_fetcher(SMALL))
        each.append(
            make_batches(plan, shards, batch_size=8, process_index=host, process_count=hosts)
        )
    whole = make_batches(plan, local, batch_size=8)
    for rows_seen in (0, 605, 1455):  # from the start, across the phases, to the end
        streams = [whole(rows_seen), *(batches(rows_seen) for batches in each)]
        for _, (expected, *found) in zip(range(6), zip(*streams, strict=True), strict=False):
            parts = {name: np.concatenate([part[name] for part in found]) for name in expected}
            assert_same(parts, expected)


def test_held_out_rows_are_those_of_the_folder_each_time(remote, written, make_fetcher):
    fetcher = make_fetcher(SMALL)
    there = mixture.open_shards(remote, split="validation", fetcher=fetcher)
    for name, here in mixture.open_shards(written, split="validation").items():
        for _ in range(2):
            batches = (read_batches(rows, batch_size=3) for rows in (there[name], here))
            for found, expected in zip(*batches, strict=True):
                assert_same(found, expected)


def count_rounds(monkeypatch) -> list[int]:
    """How many rows each call asks for that asks for rows."""
    rounds, read_ranges = [], bucket.read_ranges

    def read(ranges):
        rounds.extend([len(ranges)] * (ranges[0].end is not None))
        return read_ranges(ranges)

    monkeypatch.setattr(bucket, "read_ranges", read)
    return rounds


def test_rows_lost_to_held_out_ones_are_fetched_many_at_once(
    pail, remote, written, make_fetcher, monkeypatch
):
    local = mixture.open_shards(written)
    shards = mixture.open_shards(remote, fetcher=make_fetcher(2 * SMALL))
    plan = make_plan(local)
    expected = make_batches(plan, local, batch_size=15, prefetch=0)(0)
    batches = make_batches(plan, shards, batch_size=15, prefetch=0)(0)
    ahead = shards["a"].batches_ahead(15)
    assert ahead == 5
    for found in itertools.islice(batches, 2):
        assert_same(found, next(expected))
    rounds = count_rounds(monkeypatch)
    for more in (1, ahead):  # the second time, what is lost was asked for again already
        for held_out in read_batches(shards["c"], batch_size=15):
            assert held_out["ids"].shape == (15, LENGTH)
        assert not any(shards["c"].is_at_hand(number) for number in range(50))  # a full ring
        rounds.clear()
        pail.latency = 0.02
        for found in itertools.islice(batches, more):
            assert_same(found, next(expected))
        # each of four threads may take one row before the others are asked for
        assert len(rounds) <= 8 * (more + 1) - 4, rounds
        pail.latency = 0.0
    for found in itertools.islice(batches, 3):
        assert_same(found, next(expected))


def test_a_cache_too_small_for_what_is_ahead_does_not_fetch_it_for_each_batch(
    pail, remote, written, make_fetcher, monkeypatch
):
    monkeypatch.setattr(BucketRows, "batches_ahead", lambda self, rows: 200 // rows)
    local = mixture.open_shards(written)
    shards = mixture.open_shards(remote, fetcher=make_fetcher(SMALL))
    expected = make_batches(make_plan(local), local, batch_size=10)(1170)
    pail.requests.clear()
    for found in make_batches(make_plan(local), shards, batch_size=10)(1170):  # 30 batches
        assert_same(found, next(expected))
    assert len(pail.requests) < 4 * 300


def test_no_more_rows_are_asked_for_than_are_read(pail, remote, written, make_fetcher):
    here = mixture.open_shards(written)["c"]
    there = mixture.open_shards(remote, fetcher=make_fetcher(20))["c"]
    pail.requests.clear()
    streams = [read_batches(rows, batch_size=4, most_rows=10) for rows in (here, there)]
    expected, found = map(list, streams)
    assert len(expected) == len(found) == 3
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    assert not found[-1]["loss_mask"][2:].any() and found[-1]["loss_mask"][:2].any()
    rows = [request for request in pail.requests if request[1] is not None]
    assert len(rows) == 10 + len({path for path, *_ in rows})  # and each file's tail


def test_a_fetcher_starts_with_the_first_file_and_ends_with_its_last_holder(
    remote, written, count_fetchers, tmp_path
):
    folder, before = tmp_path / "own", count_fetchers()

    def ours() -> tuple[int, int]:
        return count_fetchers() - before, len(list(folder.glob("*/rows-*")))

    with RowFetcher(folder=folder) as fetcher:
        mixture.open_shards(written, fetcher=fetcher)
        assert mixture.read_vocab(remote) == mixture.read_vocab(written)
        assert ours() == (0, 0)
        shards = mixture.open_shards(remote, fetcher=fetcher)
        assert shards["b"][3]["ids"].shape == (LENGTH,)
        assert ours() == (4, 1)
    assert ours() == (0, 0)
    with pytest.raises(CancelledError):
        shards["b"][4]
    shards = mixture.open_shards(remote, fetcher=RowFetcher(disk_gb=SMALL * MB, folder=folder))
    batches = make_batches(make_plan(shards), shards, batch_size=4, prefetch=0)(0)
    next(batches)
    assert ours() == (4, 1)
    del shards, batches
    gc.collect()
    deadline = time.monotonic() + 10
    while ours() != (0, 0) and time.monotonic() < deadline:  # a thread may have been fetching
        time.sleep(0.01)
    assert ours() == (0, 0)


def test_threads_share_a_fetcher(remote, written, make_fetcher):
    here, fetcher = mixture.open_shards(written)["c"], make_fetcher(SMALL)
    there, wrong = mixture.open_shards(remote, fetcher=fetcher)["c"], []

    def read(seed):
        try:
            for number in np.random.default_rng(seed).permutation(len(here)).tolist():
                assert_same(there[number], here[number])
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and blocks(fetcher.cache.folder) <= fetcher.cache.limit


def test_a_hiccup_does_not_disturb(pail, remote, make_fetcher, hiccup):
    shards = mixture.open_shards(remote, fetcher=make_fetcher(SMALL))
    pail.wrong = hiccup(ConnectionResetError("reset"), 2)
    assert len(list(make_batches(make_plan(shards), shards, batch_size=16)(1358))) == 7


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConnectionResetError("reset"), r"^pail:.*rows-\d.arrayrecord(.offsets)?: cannot be read"),
        (PermissionError("no"), r"^pail:.*rows-\d.arrayrecord(.offsets)?: not allowed"),
        (FileNotFoundError("no"), r"^pail:.*rows-\d.arrayrecord(.offsets)?: no such object"),
    ],
)
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_bucket_that_is_lost_ends_the_stream_with_one_line(
    pail, remote, make_fetcher, error, line, prefetch
):
    shards = mixture.open_shards(remote, fetcher=make_fetcher(SMALL))
    batches = make_batches(make_plan(shards), shards, batch_size=4, prefetch=prefetch)(0)
    next(batches)

    def wrong(path, start, end):
        raise error

    pail.wrong = staticmethod(wrong)
    with pytest.raises(UserError, match=line) as caught:
        for _ in range(300):
            next(batches)
    assert "\n" not in str(caught.value)


def damage(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_damaged_row_is_named_and_the_others_are_read(copied, make_fetcher):
    shards = RowShards("pail://rows", fetcher=make_fetcher(SMALL))
    offsets = np.frombuffer((copied / "rows-1.arrayrecord.offsets").read_bytes(), "<u8")
    damage(copied / "rows-1.arrayrecord", int(offsets[7]) + 1000)
    here = RowShards(copied)
    with pytest.raises(UserError, match=r"pail://rows/rows-1.arrayrecord: row 7 is damaged"):
        shards[27]
    with pytest.raises(UserError, match=r"rows: row 27 is damaged"):
        here[27]
    for number in (26, 28):
        assert_same(shards[number], here[number])


def test_a_row_that_the_local_disk_has_spoilt_is_fetched_again(copied, make_fetcher):
    fetcher = make_fetcher(SMALL)
    shards = RowShards("pail://rows", fetcher=fetcher)
    expected = shards[3]
    ring = fetcher.cache.folder / "ring-00"
    with open(ring, "rb+") as file:
        file.write(bytes(ring.stat().st_size))
    assert_same(shards[3], expected)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("rows-0.arrayrecord.offsets", r"rows-0.arrayrecord.offsets: changed since prepared"),
        ("rows-0.arrayrecord", r"rows-0.arrayrecord: its index is damaged"),  # its last block
    ],
)
def test_a_damaged_index_is_named(copied, make_fetcher, file, line):
    damage(copied / file, -65_500 if file.endswith("d") else 9)
    with pytest.raises(UserError, match=rf"^pail://rows/{line}"):
        RowShards("pail://rows", fetcher=make_fetcher(SMALL))[0]


def test_missing_and_foreign_folders_are_named(copied, make_fetcher):
    fetcher = make_fetcher(SMALL)
    path = copied / "rows-1.arrayrecord"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"pail://rows/rows-1.arrayrecord: \d+ bytes, not \d+"):
        RowShards("pail://rows", fetcher=fetcher)
    path.unlink()
    with pytest.raises(UserError, match=r"pail://rows/rows-1.arrayrecord: missing"):
        RowShards("pail://rows", fetcher=fetcher)
    with pytest.raises(UserError, match=r"pail://none: is not a finished stage output"):
        RowShards("pail://none", fetcher=fetcher)
    with pytest.raises(UserError, match=r"pail://b/x.mixture.json: no such object"):
        mixture.open_shards("pail://b/x.mixture.json")


def test_rows_without_offsets_are_refused_with_what_to_do(copied, make_fetcher):
    data = json.loads((copied / "stage.json").read_text())
    for file in data["extra"]["row_files"]:
        del file["offsets"]
    artifacts.write_json(copied / "stage.json", data)
    with pytest.raises(UserError, match=r"no offsets.*prepared it again \(it adds them\)"):
        RowShards("pail://rows", fetcher=make_fetcher(SMALL))


def test_a_limit_that_two_batches_do_not_fit_says_what_would(remote, make_fetcher):
    shards = mixture.open_shards(remote, fetcher=make_fetcher(SMALL))
    plan = make_plan(shards)
    make_batches(plan, shards, batch_size=16)
    with pytest.raises(
        UserError, match=r"--disk-gb 0.0025: too small for these rows; give"
    ) as error:
        make_batches(plan, shards, batch_size=64)
    least = float(str(error.value).rsplit(" ", 1)[1])
    enough = mixture.open_shards(remote, fetcher=make_fetcher(least / MB))
    assert len(list(make_batches(plan, enough, batch_size=64)(plan.num_rows - 256))) == 4


def test_more_files_than_may_be_open(copied, make_fetcher, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 513))
    with pytest.raises(UserError, match=r"this host may open 513"):
        RowShards("pail://rows", fetcher=make_fetcher(SMALL))
    with pytest.raises(UserError, match=r"this host may open 513"):
        RowShards(copied)


def test_what_is_asked_for_is_bounded(pail, remote, make_fetcher, monkeypatch):
    monkeypatch.setattr(bucket_rows, "ROWS_AHEAD", 24)
    shards = mixture.open_shards(remote, fetcher=make_fetcher(20))
    batches = make_batches(make_plan(shards), shards, batch_size=4, prefetch=0)(0)
    next(batches)
    assert shards["a"].batches_ahead(4) == 6
    asked = {request for request in pail.requests if request[1] is not None}
    assert len(asked) <= 24 + sum(map(len, TASKS.values()))


def test_an_end_before_all_is_read_keeps_nobody_waiting(pail, remote, make_fetcher):
    fetcher = make_fetcher(20)
    shards = mixture.open_shards(remote, fetcher=fetcher)
    batches = make_batches(make_plan(shards), shards, batch_size=4)(0)
    next(batches)
    pail.latency = 0.2
    ended = []

    def read():
        try:
            for _ in batches:
                pass
        except CancelledError as error:
            ended.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    fetcher.close()
    reader.join(timeout=10)
    assert not reader.is_alive() and ended and not fetcher.cache.folder.exists()
