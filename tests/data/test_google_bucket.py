"""Rows by gs:// through gcsfs and HTTP, from an emulator of Google Cloud Storage on loopback."""

import os
import subprocess
import sys

import numpy as np
import pytest
from gcp_storage_emulator.server import create_server

from speechlm_jax import bucket
from speechlm_jax.data import mixture
from speechlm_jax.data.bucket_rows import RowFetcher
from speechlm_jax.data.plan import MixturePlan, Phase
from speechlm_jax.data.shares import PhaseSpec, make_plan, rates_to_shares
from speechlm_jax.data.stream import make_batches
from speechlm_jax.errors import UserError


@pytest.fixture(scope="module")
def written(tmp_path_factory, write_mixture):
    return write_mixture(tmp_path_factory.mktemp("rows"), {"a": [8, 6], "b": [10]})


@pytest.fixture(scope="module")
def address(written):
    """The mixture in the emulator's bucket, whose place the environment says."""
    server = create_server("localhost", 0, in_memory=True, default_bucket="my-bucket")
    server.start()
    port = server._api._httpd.socket.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{port}")
        bucket._file_system.cache_clear()
        google = bucket._file_system("gs")
        for path in written.parent.rglob("*"):
            if path.is_file():
                name = path.relative_to(written.parent).as_posix()
                google.pipe_file(f"my-bucket/data/{name}", path.read_bytes())
        yield f"gs://my-bucket/data/{written.name}"
        bucket._file_system.cache_clear()
    server.stop()


@pytest.fixture
def fetcher(tmp_path):
    made = RowFetcher(disk_gb=0.004, folder=tmp_path)
    yield made
    made.close()


def test_a_stream_by_address_is_the_local_one(address, written, fetcher):
    local = mixture.open_shards(written)
    plan = MixturePlan(mixture.task_rows(local), (Phase("p", (16, 14)),), seed=1)
    shards = mixture.open_shards(address, fetcher=fetcher)
    streams = [make_batches(plan, each, batch_size=5)(0) for each in (local, shards)]
    for number, (expected, found) in enumerate(zip(*streams, strict=True)):
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=f"{number} {name}")
    assert number == 5


def test_what_is_not_there_is_named(address, fetcher):
    with pytest.raises(UserError, match=r"^gs://my-bucket/data/none.mixture.json: no such object$"):
        mixture.open_shards("gs://my-bucket/data/none.mixture.json")
    with pytest.raises(UserError, match=r"^gs://other/mix.mixture.json: no such object$"):
        mixture.open_shards("gs://other/mix.mixture.json")


def test_a_training_reads_it_without_tensorflow(address, written, tmp_path):
    code = (
        "import sys\n"
        "from speechlm_jax.experiment import stages\n"
        "from speechlm_jax.experiment.configs import LanguageModelExperiment, RowsData\n"
        "from speechlm_jax.nn.language_model import LanguageModelConfig\n"
        "from speechlm_jax.nn.transformer import TransformerConfig\n"
        "from speechlm_jax.train.loop import TrainConfig\n"
        "data = RowsData(sys.argv[1], batch_size=4, disk_gb=0.004, cache=sys.argv[2])\n"
        "stack = TransformerConfig(1, 8, 2, 2, 4, 12)\n"
        "model = LanguageModelConfig(0, stack)\n"
        "given = LanguageModelExperiment(data, model, TrainConfig(total_steps=6))\n"
        "resolved, stage = stages.language_model(given)\n"
        "assert resolved.model.vocab_size > 60 and len(stage.evals) == 1\n"
        "heavy = {'tensorflow', 'seqio', 'tensorflow_datasets', 'pyarrow', 'torch'}\n"
        "ids = next(stage.batches(0))['ids']\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "print(resolved.data.mixture, int(ids.sum()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, address, str(tmp_path)],
        capture_output=True, text=True, check=False, env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shards = mixture.open_shards(written)
    phase = PhaseSpec("train", rates_to_shares(mixture.read_mixture(written).rates), rows=24)
    plan = make_plan(mixture.task_rows(shards), [phase], seed=0)
    batch = next(make_batches(plan, shards, batch_size=4)(0))
    assert done.stdout.split() == [address, str(batch["ids"].sum())]
    assert not list(tmp_path.glob("*/rows-*"))  # the process has taken its own along
