"""Tasks from files, functions, codes, TFDS -> rows on disk (the file that imports TensorFlow)."""

import itertools
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

with warnings.catch_warnings():  # TensorFlow's own deprecations are not ours to mend
    warnings.simplefilter("ignore")
    import seqio
    import tensorflow as tf

    from speechlm_jax.data import prepare as preparing
    from speechlm_jax.data import tasks
    from speechlm_jax.data.prepare import PrepareConfig, prepare

from speechlm_jax import artifacts
from speechlm_jax.data import mixture, packing
from speechlm_jax.data.sources import SPLITS
from speechlm_jax.errors import UserError
from speechlm_jax.jobs.commit import SHARDS
from speechlm_jax.shipped import import_module
from speechlm_jax.text import TextTokenizer
from speechlm_jax.vocab import Vocab

pytestmark = pytest.mark.filterwarnings("ignore")

WORDS = "anna lives in the city of paris and bob has a red cat".split()
TOKENIZER = TextTokenizer.train([" ".join(WORDS)], kind="word")
VOCAB = Vocab(TOKENIZER.size, 16, 12.5, TOKENIZER.fingerprint, "tokenizer-a", voices=("anna",))
CODES_OF = {"tokenizer": "tokenizer-a", "frame_rate_hz": 12.5, "codebook_size": 16}
QUICKSTART = Path(__file__).parents[2] / "tasks" / "quickstart.py"
CONFIG = PrepareConfig(length=64)


def sentences(count: int, seed: int, words: int = 12) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(2, words))) for _ in range(count)]


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A small run folder as the quickstart leaves it."""
    rng = np.random.default_rng(0)
    for part in "ab":
        rows = [{"id": f"{part}{i}", "text": t} for i, t in enumerate(sentences(40, ord(part)))]
        artifacts.write_jsonl(tmp_path / f"text/{part}.jsonl", rows)
    for name in ("speech", "pairs"):
        rows = [
            {"id": f"c{i}", "text": text,
             "codes": rng.integers(0, 16, rng.integers(4, 30)).tolist(),
             "split": "validation" if i % 10 == 0 else "train"}
            for i, text in enumerate(sentences(40, 3))
        ]  # fmt: skip
        rows = [row | {"speaker": "anna"} for row in rows]
        folder = tmp_path / "codes" / name
        artifacts.write_jsonl(folder / "codes.jsonl", rows)
        artifacts.write_manifest(
            folder, "codes", inputs={}, config={}, files=["codes.jsonl"], extra=CODES_OF
        )
    segments = [
        [{"text": text}, {"codes": [1, 2, 3], "text": "red cat"}]
        for text in sentences(20, 4, words=70)
    ]
    rows = [{"id": f"d{i}", "segments": s} for i, s in enumerate(segments)]
    artifacts.write_jsonl(tmp_path / "interleaved/documents.jsonl", rows)
    artifacts.write_manifest(
        tmp_path / "interleaved",
        "interleaved",
        inputs={},
        config={},
        files=["documents.jsonl"],
        extra=CODES_OF,
    )
    asked, said = {"codes": [1, 2], "text": "city"}, {"codes": [5], "text": "paris"}
    turns = [{"role": "user", "segments": [asked]}, {"role": "assistant", "segments": [said]}]
    artifacts.write_jsonl(
        tmp_path / "dialogues/dialogues.jsonl", [{"id": f"d{i}", "turns": turns} for i in range(5)]
    )
    artifacts.write_manifest(
        tmp_path / "dialogues",
        "dialogues",
        inputs={},
        config={},
        files=["dialogues.jsonl"],
        extra=CODES_OF,
    )
    sources = {
        "dialogues": ["dialogues"], "voiced": ["codes/pairs"],
        "text": ["text/*.jsonl"], "speech": ["codes/speech"], "pairs": ["codes/pairs"],
        "interleaved": ["interleaved"],
    }  # fmt: skip
    artifacts.write_json(tmp_path / "sources.json", sources)
    monkeypatch.setenv("SPEECHLM_RUN", str(tmp_path))
    return tmp_path


def prepare_here(name, out, *, modules=(), config=CONFIG, vocab=VOCAB) -> Path:
    return prepare(
        name,
        modules=list(modules),
        vocab=vocab,
        tokenizer=TOKENIZER,
        out=out,
        config=config,
        quiet=True,
    )


def files(out) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def row_documents(shards) -> list[packing.Document]:
    return [
        document
        for i in range(len(shards))
        for document in packing.unpack(
            packing.Row(
                **{k: v.astype(bool) if k == "loss_mask" else v for k, v in shards[i].items()}
            )
        )
    ]


def as_text(documents) -> list[str]:
    return sorted(tasks.current_writer().ids_to_text(document.ids) for document in documents)


def test_quickstart_mixtures_share_their_tasks(run):
    first = prepare_here("quickstart_interleaved", run / "rows", modules=[str(QUICKSTART)])
    stamps = {p: p.stat().st_mtime_ns for p in (run / "rows").rglob("*.arrayrecord")}
    second = prepare_here("quickstart_baseline", run / "rows", modules=[str(QUICKSTART)])
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    new = {
        p.parts[-3].split("-")[0] for p in (run / "rows").rglob("*.arrayrecord") if p not in stamps
    }
    assert new == {"q_text_of_interleaved"}
    assert mixture.read_text(first, VOCAB) == TOKENIZER.model

    shards = mixture.open_shards(first, vocab=VOCAB)
    held_out = mixture.open_shards(first, split="validation", vocab=VOCAB)
    assert set(shards) == {"q_text", "q_speech", "q_asr", "q_tts", "q_interleaved"}
    assert sum(mixture.read_mixture(second).rates.values()) == pytest.approx(1)
    for name in ("q_asr", "q_tts"):
        documents = row_documents(shards[name])
        assert len(documents) == shards[name].counts["documents"] == 36
        assert len(row_documents(held_out[name])) == 4
        for document in documents:
            # The loss falls on the target side alone: the text of ASR, the speech of TTS.
            has_speech = VOCAB.is_speech(document.ids[document.loss_mask]).any()
            assert has_speech == (name == "q_tts") and not document.loss_mask[0]
    assert all(document.loss_mask.all() for document in row_documents(shards["q_interleaved"]))
    assert shards["q_interleaved"].counts["split_documents"] > 0


def test_dialogues_and_voices(run):
    modules = [str(QUICKSTART)]
    chat = mixture.open_shards(prepare_here("quickstart_chat", run / "rows", modules=modules))
    for document in row_documents(chat["quickstart_chat"]):
        assert VOCAB.ids_to_codes(document.ids[document.loss_mask][1:2]) == [5]
    voiced = mixture.open_shards(prepare_here("q_text_to_token", run / "rows", modules=modules))
    for document in row_documents(voiced["q_text_to_token"]):
        assert document.ids[0] == VOCAB.voice_id("anna") and not document.loss_mask[0]


def test_text_rows_hold_every_document_once(run):
    tasks.text("all_text", str(run / "text/*.jsonl"), validation_ratio=0.25)
    for shards_made in (1, 2, 3):  # more shards than files: SeqIO deals examples instead
        config = PrepareConfig(length=64, num_shards=shards_made)
        path = prepare_here("all_text", run / "rows", config=config)
        found = [
            text
            for split in ("train", "validation")
            for text in as_text(row_documents(mixture.open_shards(path, split=split)["all_text"]))
        ]
        expected = [f"{text} <eos>" for part in "ab" for text in sentences(40, ord(part))]
        assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("stop", [1, 2])  # in the second shard of a split, in the first of another
def test_rows_are_the_same_after_an_interruption(tmp_path, monkeypatch, stop):
    name = f"interrupted_{stop}"
    tasks.text_function(name, lambda split: sentences(60, len(split)), splits=SPLITS)
    config = PrepareConfig(length=64, num_shards=2)
    prepare_here(name, tmp_path / "whole", config=config)
    made = []

    def prepare_shard(job, *given, really=preparing.prepare_shard, **more):
        made.append((job.split, job.shard))
        if len(made) == stop + 1:
            raise KeyboardInterrupt
        return really(job, *given, **more)

    monkeypatch.setattr(preparing, "prepare_shard", prepare_shard)
    with pytest.raises(KeyboardInterrupt):
        prepare_here(name, tmp_path / "out", config=config)
    assert not list((tmp_path / "out").glob("*.mixture.json"))
    prepare_here(name, tmp_path / "out", config=config)
    assert made[stop + 1] == made[stop] and len({*made}) == 4
    assert len(made) == 4 + 1, "finished shards are not made again"
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    for folder in (tmp_path / "out").glob(f"{name}-*/*"):  # killed before they were removed
        (folder / SHARDS).mkdir()
        (folder / ".stage.json.1.tmp").touch()
    prepare_here(name, tmp_path / "out", config=config)
    assert len(made) == 5 and files(tmp_path / "out") == files(tmp_path / "whole")
    assert not list((tmp_path / "out").rglob(SHARDS))


def test_what_an_earlier_version_left_unfinished_is_made_anew_and_told(tmp_path, caplog):
    caplog.set_level("INFO")
    tasks.text_function("unfinished", lambda split: sentences(30, 6), splits=["train"])
    config = PrepareConfig(length=64, num_shards=2)
    prepare_here("unfinished", tmp_path / "out", config=config)
    undisturbed = files(tmp_path / "out")
    assert not [line for line in caplog.messages if "anew" in line]
    folder = next((tmp_path / "out").glob("unfinished-*")) / "train"
    (folder / artifacts.MANIFEST).unlink()
    (folder / "rows-00001-of-00002.json").unlink()  # killed before the second shard was done
    (folder / "rows-00000-of-00002.arrayrecord").write_bytes(b"half")
    (folder / ".rows-00001-of-00002.arrayrecord.1.tmp").write_bytes(b"half")
    prepare_here("unfinished", tmp_path / "out", config=config)
    assert files(tmp_path / "out") == undisturbed
    assert len([line for line in caplog.messages if "anew" in line]) == 1


def test_wherever_it_is_killed_the_next_run_leaves_what_an_undisturbed_one_does(
    tmp_path, monkeypatch
):
    """Each file takes its place by os.replace: before every other one, the process ends once."""

    class Killed(BaseException):
        pass

    def prepared(out, *, die_before=None) -> dict[str, bytes]:
        calls = itertools.count()

        def replace(source, target, really=os.replace):
            if next(calls) == die_before:
                raise Killed
            really(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            prepare_here("killed", out)
        return files(out)

    tasks.text_function("killed", lambda split: sentences(9, 5), splits=["train"])
    undisturbed = prepared(tmp_path / "undisturbed")
    for number in itertools.count(step=2):
        out = tmp_path / f"killed_{number}"
        try:
            prepared(out, die_before=number)
            break
        except Killed:
            assert not list(out.glob("*.mixture.json"))
            assert prepared(out) == undisturbed
    assert number >= 4


def test_a_change_of_data_or_vocabulary_prepares_anew(run):
    tasks.text("changing", str(run / "text/a.jsonl"))
    first = mixture.read_mixture(prepare_here("changing", run / "rows"))
    assert mixture.read_mixture(prepare_here("changing", run / "rows")) == first
    artifacts.write_jsonl(
        run / "text/a.jsonl", [{"id": str(i), "text": "a red cat"} for i in range(9)]
    )
    second = mixture.read_mixture(prepare_here("changing", run / "rows"))
    longer = mixture.read_mixture(
        prepare_here("changing", run / "rows", config=PrepareConfig(length=32))
    )
    assert len({m.tasks[0].splits["train"] for m in (first, second, longer)}) == 3


def test_a_tfds_data_set_built_offline(tmp_path, tiny_stories):
    # A module of its own: TFDS looks for the code of a builder that sits in a package by a library
    # that it does not require.
    (tmp_path / "tiny_stories.py").write_text(tiny_stories)
    module = import_module(str(tmp_path / "tiny_stories.py"))
    module.TEXTS = sentences(30, 9)
    module.TinyStories(data_dir=str(tmp_path / "tfds")).download_and_prepare()
    tasks.text_tfds(
        "stories", "tiny_stories:1.0.0", data_dir=tmp_path / "tfds", field="story",
        splits={"train": "train[10%:]", "validation": "train[:10%]"},
    )  # fmt: skip
    path = prepare_here("stories", tmp_path / "rows")
    train, held_out = (
        mixture.open_shards(path, split=s)["stories"] for s in ("train", "validation")
    )
    assert (len(row_documents(train)), len(row_documents(held_out))) == (27, 3)
    found = as_text(row_documents(train)) + as_text(row_documents(held_out))
    assert sorted(found) == sorted(f"{text} <eos>" for text in sentences(30, 9))


def test_a_users_module_outside_the_checkout(tmp_path):
    (tmp_path / "lab.py").write_text(
        "from speechlm_jax.data import tasks\n"
        "tasks.text_function('my_text', lambda split: ['a red cat'] * 20)\n"
        "tasks.mixture('my_mix', {'my_text': 2.0})\n"
    )
    path = prepare_here("my_mix", tmp_path / "rows", modules=[str(tmp_path / "lab.py")])
    assert mixture.read_mixture(path).rates == {"my_text": 2.0}
    assert as_text(row_documents(mixture.open_shards(path)["my_text"])) == ["a red cat <eos>"] * 20
    assert import_module(str(tmp_path / "lab.py")) is import_module(str(tmp_path / "lab.py"))


def test_the_file_in_the_readme_registers_a_mixture(tmp_path):
    readme = (QUICKSTART.parent / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    (tmp_path / "my_lab.py").write_text(code)
    import_module(str(tmp_path / "my_lab.py"))
    assert {task.name for task in tasks.find("lab_mixture").tasks} >= {
        "lab_text",
        "lab_interleaved",
    }
    (tmp_path / "stories").mkdir()
    (tmp_path / "stories/one.txt").write_text("a red cat\n" * 30)
    path = prepare_here("lab_text", tmp_path / "rows")
    assert set(as_text(row_documents(mixture.open_shards(path)["lab_text"]))) == {"a red cat <eos>"}


def test_the_readmes_task_of_seqios_own_preprocessors(tmp_path, monkeypatch):
    readme = (QUICKSTART.parent / "README.md").read_text()
    (tmp_path / "my_lines.py").write_text(readme.split("```python\n")[2].split("```")[0])
    (tmp_path / "stories").mkdir()
    (tmp_path / "stories/one.txt").write_text("a red cat\n" * 30)
    monkeypatch.chdir(tmp_path)
    import_module(str(tmp_path / "my_lines.py"))
    path = prepare_here("lab_lines", tmp_path / "rows")
    assert (
        as_text(row_documents(mixture.open_shards(path)["lab_lines"])) == ["a red cat <eos>"] * 30
    )


def test_the_readmes_codes_make_the_same_rows_in_both_formats(tmp_path, monkeypatch):
    readme = (QUICKSTART.parent / "README.md").read_text()
    (tmp_path / "my_codes.py").write_text(readme.split("```python\n")[3].split("```")[0])
    monkeypatch.chdir(tmp_path)
    made = import_module(str(tmp_path / "my_codes.py"))
    lines, parquet = (
        [path.read_bytes() for path in sorted(Path("my_rows").glob(f"{name}-*/*/*.arrayrecord"))]
        for name in ("asr_of_lines", "asr_of_parquet")
    )
    assert lines == parquet and len(lines) == 2 and all(lines)
    # The folder's two files, one for each shard.
    path = prepare(
        "asr_of_parquet",
        vocab=made.vocab,
        tokenizer=made.text,
        out="two_shards",
        config=PrepareConfig(length=64, num_shards=2),
        quiet=True,
    )
    found = mixture.open_shards(path)["asr_of_parquet"]
    first = mixture.open_shards("my_rows/asr_of_lines.mixture.json")["asr_of_lines"]
    assert len(list(Path("two_shards").glob("*/train/*.arrayrecord"))) == 2
    assert as_text(row_documents(found)) == as_text(row_documents(first))


def test_a_module_beside_the_user_is_found(tmp_path, monkeypatch):
    (tmp_path / "beside_me.py").write_text("NUMBER = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [place for place in sys.path if place])
    assert import_module("beside_me").NUMBER == 3


def test_tasks_are_real_seqio_tasks(run):
    prepare_here("quickstart_interleaved", run / "rows", modules=[str(QUICKSTART)])
    lengths = {"inputs": 64, "targets": 64}
    provider = seqio.get_mixture_or_task("quickstart_interleaved")
    vocabulary = provider.output_features["targets"].vocabulary
    assert vocabulary.vocab_size == VOCAB.size
    assert vocabulary.decode(vocabulary.encode("a red cat")) == "a red cat"
    assert vocabulary.encode_tf(tf.constant("a red cat")).numpy().tolist() == vocabulary.encode(
        "a red cat"
    )
    dataset = provider.get_dataset(lengths, split="train", shuffle=False, num_epochs=None)
    examples = list(dataset.take(40).as_numpy_iterator())
    assert all(e["targets"].dtype == np.int32 and len(e["targets"]) > 1 for e in examples)
    assert {bool(len(e["inputs"])) for e in examples} == {True, False}
    assert tasks.output_features() == tasks.output_features()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"id": "x", "text": "a red cat", "codes": [3, 99]}', "row 'x' has codes outside 0..15"),
        ('{"id": "x", "text": "a red cat"}', "row 'x' has no field 'codes'"),
        ("{broken", "codes.jsonl:1: is not JSON"),
    ],
)
def test_bad_rows_stop_with_one_line(tmp_path, row, message):
    name = f"bad_{len(message)}_{tmp_path.name}".replace("-", "_").replace(".", "_")
    (tmp_path / "codes.jsonl").write_text(row + "\n")
    artifacts.write_manifest(
        tmp_path, "codes", inputs={}, config={}, files=["codes.jsonl"], extra=CODES_OF
    )
    tasks.speech(name, tmp_path, validation_ratio=0.0)
    with pytest.raises(UserError) as error:
        prepare_here(name, tmp_path / "rows")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_mistakes_are_named(tmp_path, run, monkeypatch):
    with pytest.raises(UserError, match="did you mean 'quickstart_baseline'"):
        prepare_here("quickstart_baselin", run / "rows", modules=[str(QUICKSTART)])
    with pytest.raises(UserError, match="no such file"):
        import_module(str(tmp_path / "none.py"))
    with pytest.raises(UserError, match="no module 'no_such_module_here'"):
        import_module("no_such_module_here")
    with pytest.raises(UserError, match="registered twice"):
        tasks.text("q_text", "x.txt")
    other = Vocab(TOKENIZER.size, 16, 12.5, TOKENIZER.fingerprint, "tokenizer-b")
    with pytest.raises(UserError, match="'tokenizer-a', the vocabulary has 'tokenizer-b'"):
        prepare_here("q_speech", run / "rows", vocab=other)
    with pytest.raises(UserError, match="nothing.txt: no such text file"):
        tasks.text("no_text", tmp_path / "nothing.txt")
        prepare_here("no_text", run / "rows")
    with pytest.raises(UserError, match="gives no rows"):
        tasks.text_function("empty", lambda split: [])
        prepare_here("empty", run / "rows")
    tasks.text_tfds("absent", "no_such_data_set:1.0.0", data_dir=tmp_path)
    with pytest.raises(UserError, match="no_such_data_set:1.0.0 is not on disk"):
        prepare_here("absent", run / "rows")
    monkeypatch.delenv("SPEECHLM_RUN")
    with pytest.raises(UserError, match="SPEECHLM_RUN"):
        prepare_here("q_text", run / "rows")


def test_registering_needs_neither_vocabulary_nor_files(monkeypatch, tmp_path):
    monkeypatch.setattr(tasks, "_writer", None)
    task = tasks.asr("lazy", tmp_path / "not_yet")
    assert task.name == "lazy" and task.output_features["targets"].rank == 1
    with pytest.raises(UserError, match="no vocabulary is in use"):
        task.get_dataset(split="train", shuffle=False)
