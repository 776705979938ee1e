"""Ranges are those of the files; what fails is asked for again, or named in one line."""

import errno
import subprocess
import sys

import numpy as np
import pytest

from speechlm_jax import artifacts, bucket
from speechlm_jax.bucket import Range
from speechlm_jax.errors import UserError

HICCUPS = [
    OSError(errno.ECONNRESET, "connection reset"),
    TimeoutError("too slow"),
    type("HttpError", (Exception,), {"code": 503, "__module__": "gcsfs.retry"})("busy"),
    type("ClientPayloadError", (Exception,), {"__module__": "aiohttp.client_exceptions"})("cut"),
]


@pytest.mark.parametrize("place", ["gs://b/x.json", "runs/x.json", "/x/y"])
def test_places_are_joined_and_taken_apart(place):
    folder = bucket.parent(place)
    assert str(bucket.join(folder, place.rpartition("/")[2])) == place
    assert bucket.is_address(folder) == place.startswith("gs://")
    assert bucket.join("gs://b/x/", "y") == "gs://b/x/y"


def test_ranges_are_those_of_the_files_and_asked_for_at_once(pail):
    random = np.random.default_rng(0)
    files = {name: random.integers(0, 256, 5000, np.uint8).tobytes() for name in "abc"}
    for name, data in files.items():
        (pail.folder / name).write_bytes(data)
    ranges = []
    for _ in range(60):
        start, end = sorted(random.integers(0, 5000, 2).tolist())
        ranges.append(Range(f"pail://{random.choice([*files])}", start, end + 1))
    pail.latency = 0.05
    found = bucket.read_ranges([*ranges, Range("pail://b")])
    assert found[:-1] == [files[r.address[-1]][r.start : r.end] for r in ranges]
    assert found[-1] == files["b"] and pail.most_at_once == 61
    assert bucket.read_ranges([]) == []


@pytest.mark.parametrize("error", HICCUPS, ids=lambda error: type(error).__name__)
def test_what_fails_at_first_is_asked_for_again_and_only_that(pail, hiccup, error):
    (pail.folder / "a").write_bytes(b"0123456789")
    pail.wrong = hiccup(error, 4)
    wanted = [Range("pail://a", i, i + 1) for i in range(6)]
    assert b"".join(bucket.read_ranges(wanted)) == b"012345"
    assert len(pail.requests) == 10
    pail.wrong = hiccup(error, 10**6)
    with pytest.raises(
        UserError, match=r"^pail://a: cannot be read, tried again and again \(.+\)$"
    ):
        bucket.read_ranges(wanted)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError("a"), "pail://f/a: no such object"),
        (PermissionError(errno.EACCES, "no"), "pail://f/a: not allowed"),
        (OSError("Forbidden: https://x\nno access"), "pail://f/a: not allowed (Forbidden: https"),
        (ValueError("Bad Request: a\nrequester pays"), "pail://f/a: cannot be read (Bad Request"),
    ],
)
def test_what_no_second_try_mends_is_one_line_at_once(pail, hiccup, error, line):
    pail.wrong = hiccup(error, 1)
    with pytest.raises(UserError) as caught:
        bucket.read_bytes("pail://f/a")
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)
    assert len(pail.requests) == 1


def test_our_own_mistakes_are_not_the_buckets(pail, hiccup):
    pail.wrong = hiccup(ZeroDivisionError("ours"), 1)
    with pytest.raises(ZeroDivisionError):
        bucket.read_bytes("pail://a")


def test_a_file_that_was_cut_short_is_named(pail):
    (pail.folder / "a").write_bytes(b"0123")
    with pytest.raises(UserError, match=r"pail://a: .*2 bytes at 2, not 8: cut short"):
        bucket.read_ranges([Range("pail://a", 2, 10)])


def test_sizes_of_a_folder(pail):
    (pail.folder / "f").mkdir()
    (pail.folder / "f/a").write_bytes(b"12345")
    assert bucket.file_sizes("pail://f") == {"a": 5}
    assert bucket.file_sizes("pail://g") == {}


def test_protocols_that_cannot_be_read_are_one_line():
    with pytest.raises(UserError, match=r"^nosuch://: Protocol not known"):
        bucket.read_bytes("nosuch://x/y")


def test_without_gcsfs_the_line_says_what_to_install():
    code = (
        "import sys\n"
        "sys.modules['gcsfs'] = None\n"
        "from speechlm_jax import bucket\n"
        "bucket.read_bytes('gs://b/x')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "gs://: cannot be read here; pip install -e '.[gcs]'" in done.stderr


@pytest.mark.parametrize("place", ["gs://b/lm", "gs:/b/lm"])
def test_a_place_that_must_be_a_folder(place):
    bucket.require_folder("runs/lm", "--workdir")
    with pytest.raises(UserError, match=r"--workdir gs://b/lm: .*mount the bucket"):
        bucket.require_folder(place, "--workdir")


def test_small_files_and_manifests_are_read_by_address(pail):
    artifacts.write_json(pail.folder / "x.json", {"a": "ä"})
    assert artifacts.read_json("pail://x.json") == {"a": "ä"}
    (pail.folder / "x.json").write_bytes(b"\xff{")
    with pytest.raises(UserError, match=r"pail://x.json: is not JSON"):
        artifacts.read_json("pail://x.json")
    with pytest.raises(UserError, match=r"pail://y.json: no such object"):
        artifacts.read_json("pail://y.json")
    made = artifacts.write_manifest(pail.folder / "f", "rows", inputs={}, config={})
    assert artifacts.read_manifest("pail://f") == made
    with pytest.raises(UserError, match=r"pail://g: is not a finished stage output"):
        artifacts.read_manifest("pail://g")
