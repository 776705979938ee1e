"""The stream gives the same rows whatever hosts, batch size and restarts; and no TensorFlow."""

import subprocess
import sys

import numpy as np
import pytest

from speechlm_jax.data import mixture
from speechlm_jax.data.packing import Document, pack
from speechlm_jax.data.plan import MixturePlan, Phase
from speechlm_jax.data.rows import RowFile, RowShards, write_row_manifest, write_rows
from speechlm_jax.data.stream import make_batches, read_batches
from speechlm_jax.errors import UserError
from speechlm_jax.vocab import Vocab

VOCAB = Vocab(50, 16, 12.5, "text", "tokenizer")
LENGTH = 8


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two tasks whose rows say which they are: ids are 0 1 2 ... of task and row number."""
    out = tmp_path_factory.mktemp("rows")
    tasks = []
    for k, (name, count) in enumerate([("a", 7), ("b", 12)]):
        documents = [
            Document(np.full(LENGTH, 20 * k + i, np.int32), np.ones(LENGTH, bool))
            for i in range(count)
        ]
        path = out / name / "train" / "rows.arrayrecord"
        counts = write_rows(path, pack(documents, length=LENGTH), vocab=VOCAB, length=LENGTH)
        write_row_manifest(
            path.parent, [RowFile(path.name, count, path.stat().st_size)], task=name, split="train",
            vocab=VOCAB, length=LENGTH, counts=vars(counts), inputs={}, config={}, seed=0,
        )  # fmt: skip
        tasks.append(mixture.PreparedTask(name, 1.0 + k, {"train": f"{name}/train"}))
    made = mixture.PreparedMixture("mix", LENGTH, VOCAB.fingerprint, tuple(tasks))
    return mixture.write_mixture(out, made)


@pytest.fixture(scope="module")
def shards(prepared):
    return mixture.open_shards(prepared, vocab=VOCAB)


@pytest.fixture(scope="module")
def plan(shards):
    return MixturePlan(
        mixture.task_rows(shards), (Phase("p", (21, 30)), Phase("q", (1, 8))), seed=1
    )


def read(plan, shards, rows_seen=0, **options) -> list[dict]:
    return list(make_batches(plan, shards, **options)(rows_seen))


def joined(batches: list[dict]) -> np.ndarray:
    return np.concatenate([batch["ids"][:, 0] for batch in batches])


def test_rows_are_those_of_the_plan(plan, shards):
    batches = read(plan, shards, batch_size=4)
    planned = plan.rows(np.arange(plan.num_rows))
    np.testing.assert_array_equal(joined(batches), 20 * planned.task + planned.index)
    np.testing.assert_array_equal(np.concatenate([b["task"] for b in batches]), planned.task)
    shapes = {name: (value.shape, value.dtype.name) for name, value in batches[0].items()}
    assert shapes == {
        "ids": ((4, LENGTH), "int32"),
        "segments": ((4, LENGTH), "int32"),
        "positions": ((4, LENGTH), "int32"),
        "loss_mask": ((4, LENGTH), "float32"),
        "task": ((4,), "int32"),
    }


@pytest.mark.parametrize("batch_size", [1, 3, 12])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_batch_size_and_prefetch_do_not_change_the_rows(plan, shards, batch_size, prefetch):
    whole = joined(read(plan, shards, batch_size=1, prefetch=0))
    got = joined(read(plan, shards, batch_size=batch_size, prefetch=prefetch))
    np.testing.assert_array_equal(got, whole[: len(whole) // batch_size * batch_size])


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_each_global_batch(plan, shards, hosts):
    one = read(plan, shards, batch_size=4)
    parts = [
        read(plan, shards, batch_size=4, process_index=p, process_count=hosts) for p in range(hosts)
    ]
    for batch, *of_hosts in zip(one, *parts, strict=True):
        for name in batch:
            np.testing.assert_array_equal(np.concatenate([b[name] for b in of_hosts]), batch[name])


def test_a_restart_goes_on_with_other_hosts_and_batch_size(plan, shards):
    whole = joined(read(plan, shards, batch_size=1))
    for rows_seen in (1, 13, 52, 60):
        rest = (
            joined(read(plan, shards, rows_seen, batch_size=3)) if rows_seen < 58 else np.zeros(0)
        )
        left = (len(whole) - rows_seen) // 3 * 3
        np.testing.assert_array_equal(rest, whole[rows_seen : rows_seen + left])
    assert read(plan, shards, plan.num_rows, batch_size=3) == []


def test_held_out_rows_come_once_with_padding_at_the_end(shards):
    batches = list(read_batches(shards["b"], batch_size=5, task=1))
    assert [b["ids"].shape[0] for b in batches] == [5, 5, 5]
    assert joined(batches)[:12].tolist() == list(range(20, 32))
    assert not batches[-1]["loss_mask"][2:].any() and not batches[-1]["segments"][2:].any()


def test_a_part_of_the_held_out_rows_is_spread_over_all_of_them(shards):
    """...and the same ones each time: 12 rows are numbered from 20."""
    for most, expected in {12: range(20, 32), 4: [20, 23, 26, 29], 5: [20, 22, 24, 27, 29]}.items():
        batches = list(read_batches(shards["b"], batch_size=5, most_rows=most))
        assert joined(batches)[:most].tolist() == list(expected)
        assert not any(b["segments"].any() for b in batches[-(-most // 5) :])


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("most", [1, 3, 8, 9, 12])
def test_hosts_share_held_out_rows_and_get_as_many_batches(shards, hosts, most):
    given = {"batch_size": 8, "most_rows": most}
    whole = list(read_batches(shards["b"], **given))
    parts = [
        list(read_batches(shards["b"], process_index=i, process_count=hosts, **given))
        for i in range(hosts)
    ]
    assert {len(batches) for batches in parts} == {len(whole)} == {-(-most // 8)}
    for batch, *of_hosts in zip(whole, *parts, strict=True):
        for name in batch:
            np.testing.assert_array_equal(np.concatenate([b[name] for b in of_hosts]), batch[name])
    with pytest.raises(UserError, match="does not divide by the 3 hosts"):
        read_batches(shards["b"], process_count=3, **given)


def test_wrong_shards_are_refused(plan, shards):
    with pytest.raises(UserError, match="task b: in the plan"):
        make_batches(plan, {"a": shards["a"]}, batch_size=4)
    with pytest.raises(UserError, match="not the rows that the plan was made for"):
        make_batches(plan, {"a": shards["a"], "b": shards["a"]}, batch_size=4)
    with pytest.raises(UserError, match="does not divide"):
        make_batches(plan, shards, batch_size=4, process_count=3)


def test_a_broken_mixture_file_is_named(tmp_path, prepared):
    assert mixture.read_mixture(prepared).rates == {"a": 1.0, "b": 2.0}
    (tmp_path / "x.mixture.json").write_text('{"nme": 1}')
    with pytest.raises(UserError, match=r"x\.mixture\.json: is not a prepared mixture"):
        mixture.read_mixture(tmp_path / "x.mixture.json")
    assert isinstance(RowShards(prepared.parent / "a/train"), RowShards)


@pytest.mark.parametrize(
    "folder", ["../other", "/etc", "gs://theirs/rows", "", ".", "a/../../x", "x" * 300]
)
def test_a_mixture_of_somebody_else_names_no_folder_elsewhere(tmp_path, prepared, folder):
    text = prepared.read_text().replace('"a/train"', f'"{folder}"')
    (tmp_path / "x.mixture.json").write_text(text)
    with pytest.raises(UserError, match=r"x\.mixture\.json: .*does not lie beside"):
        mixture.open_shards(tmp_path / "x.mixture.json")


def test_training_path_imports_no_tensorflow():
    code = (
        "import sys\n"
        "from speechlm_jax.data import mixture, shares, stream\n"
        "bad = {'tensorflow', 'seqio', 'tensorflow_datasets', 'torch'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
