"""Experiments as files and JSON; weights are loaded as what they were trained as, or refused."""

import dataclasses

import jax
import numpy as np
import pytest

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.audio.recordings import Features
from speechlm_jax.data.clips import BucketConfig
from speechlm_jax.data.mixture import (
    PreparedMixture,
    PreparedTask,
    open_shards,
    read_vocab,
    write_mixture,
)
from speechlm_jax.data.packing import Row
from speechlm_jax.data.rows import RowFile, write_row_manifest, write_rows
from speechlm_jax.errors import UserError
from speechlm_jax.experiment import runs, stages, training
from speechlm_jax.experiment.configs import (
    PLACES,
    ClipsData,
    LanguageModelExperiment,
    RowsData,
    SpeechDecoderExperiment,
    SpeechTokenizerExperiment,
    essence,
    load_experiment,
)
from speechlm_jax.nn.language_model import LanguageModelConfig, functional
from speechlm_jax.nn.transformer import TransformerConfig
from speechlm_jax.quickstart.sizes import FULL, MICRO
from speechlm_jax.text import TextTokenizer
from speechlm_jax.train import checkpoints
from speechlm_jax.train.checkpoint_folder import Meta
from speechlm_jax.train.checkpoints import Weights
from speechlm_jax.train.run_identity import decisive
from speechlm_jax.train.stage import EvalState, LossOutput, Stage
from speechlm_jax.vocab import Vocab

VOCAB = Vocab(12, 4, 12.5, "text", "tokenizer", num_spare=4, pad_to_multiple=8)
STACK = TransformerConfig(num_layers=1, embed=8, heads=2, kv_heads=2, head_dim=4, mlp=12)
LM = LanguageModelExperiment(
    RowsData("rows.mixture.json"),
    LanguageModelConfig(VOCAB.size, STACK),
    MICRO.lm_training.config(seed=3),
)


def experiments(size):
    clips = ClipsData("features", "text.model", kinds=("string",), buckets=BucketConfig())
    rows = RowsData("rows.mixture.json", batch_size=3)
    return (
        SpeechTokenizerExperiment(clips, size.tokenizer, size.tokenizer_training.config(seed=0)),
        LanguageModelExperiment(rows, size.lm, size.lm_training.config(seed=1)),
        SpeechDecoderExperiment(
            clips, size.speech_decoder, size.speech_decoder_training.config(seed=2)
        ),
    )


def test_where_rows_are_read_from_is_no_part_of_a_run():
    rows = RowsData("gs://my-bucket/rows.mixture.json", disk_gb=50.0, cache="/mnt/ssd")
    moved = configs.override(LM, ["data.mixture=gs://b/rows.mixture.json", "data.disk_gb=5"])
    assert moved.data == RowsData("gs://b/rows.mixture.json", disk_gb=5.0)
    for other in (dataclasses.replace(LM, data=rows), moved):
        assert other != LM and essence(other) == essence(LM)
        assert decisive(configs.to_json(other), PLACES) == decisive(configs.to_json(LM), PLACES)


def test_what_is_measured_while_training_is_no_part_of_a_run():
    other = dataclasses.replace(LM, eval_rows=7)
    assert other != LM and essence(other) == essence(LM)


@pytest.mark.parametrize("size", [FULL, MICRO], ids=["full", "micro"])
def test_json_keeps_an_experiment(size, tmp_path):
    for number, given in enumerate(experiments(size)):
        path = tmp_path / f"{number}.json"
        artifacts.write_json(path, configs.to_json(given))
        assert load_experiment(path) == given


def test_a_python_file_is_an_experiment_and_overrides_are_strict(tmp_path, monkeypatch):
    path = tmp_path / "mine.py"
    names = {type(x).__name__: type(x) for x in (LM, LM.data, LM.model, STACK, LM.train)}
    inner = (LM.train.optimizer, LM.train.mesh, LM.train.state, STACK.execution)
    names |= {type(x).__name__: type(x) for x in inner}
    lines = [f"from {cls.__module__} import {name}" for name, cls in names.items()]
    path.write_text("\n".join([*lines, "def config():", f"    return {LM!r}"]))
    assert load_experiment(path) == LM
    trained = []
    monkeypatch.setattr(training, "train_experiment", lambda *given: trained.append(given))
    training.train(path, overrides=["train.total_steps=7"], workdir=tmp_path / "run")
    assert trained[0][0].train.total_steps == 7
    with pytest.raises(UserError, match="total_steps"):
        training.train(path, overrides=["train.total_step=7"], workdir=tmp_path)


def test_what_is_no_experiment_is_refused(tmp_path):
    path = tmp_path / "c.json"
    artifacts.write_json(path, configs.to_json(STACK))
    with pytest.raises(UserError, match="c.json: is not the config of an experiment"):
        load_experiment(path)
    path = tmp_path / "c.py"
    path.write_text(
        "from speechlm_jax.data.clips import BucketConfig\ndef config():\n    return BucketConfig()"
    )
    with pytest.raises(UserError, match="BucketConfig, not an experiment"):
        load_experiment(path)


@pytest.fixture
def trained(monkeypatch, draw):
    """Makes `checkpoints.load_params` find a trained language model."""
    identity = {"vocabulary": VOCAB.fingerprint, "tokenizer": "tokenizer", "plan": "p"}
    meta = Meta("lm", 8, 24, identity, configs.to_json(LM), "fingerprint", {})
    weights = Weights(draw(functional(LM.model)), {}, meta)
    monkeypatch.setattr(checkpoints, "load_params", lambda run: weights)
    return weights


def test_weights_are_loaded_as_what_they_were_trained_as(trained):
    inference, found = runs.load_inference("run", kind="lm", vocab=VOCAB)
    assert found == LM and inference.config == LM.model
    with pytest.raises(UserError, match="run: holds a LanguageModel.*not a SpeechTokenizer"):
        runs.load_reader("run")
    with pytest.raises(UserError, match="kind lm; give one of kind text_to_token"):
        runs.load_inference("run", kind="text_to_token")
    other = dataclasses.replace(VOCAB, codebook_size=5)
    with pytest.raises(UserError, match=f"{VOCAB.fingerprint}.*{other.fingerprint}"):
        runs.load_inference("run", vocab=other)


def test_the_fingerprint_of_weights_tells_runs_and_steps_apart(trained):
    meta = trained.meta
    changes = [{}, {"step": 9}, {"fingerprint": "f"}, {"identity": {"vocabulary": "v"}}]
    found = [runs.meta_fingerprint(dataclasses.replace(meta, **change)) for change in changes]
    assert len(set(found)) == len(changes)
    assert found[0] == runs.meta_fingerprint(meta)


@pytest.fixture
def prepared(tmp_path):
    """Two tasks with 7 and 20 held-out rows, in a folder of their own."""
    random, tasks = np.random.default_rng(0), []
    for name, size in {"a": 7, "b": 20}.items():
        rows = [
            Row(
                random.integers(0, VOCAB.size, 6).astype(np.int32), np.ones(6, np.int32),
                np.arange(6, dtype=np.int32), np.arange(6) > 0,
            )
            for _ in range(size)
        ]  # fmt: skip
        folder = tmp_path / "prepared" / name
        path = folder / "rows.arrayrecord"
        counts = write_rows(path, rows, vocab=VOCAB, length=6)
        write_row_manifest(
            folder, [RowFile(path.name, size, path.stat().st_size)], task=name, split="validation",
            vocab=VOCAB, length=6, counts=dataclasses.asdict(counts), inputs={}, config={}, seed=0,
        )  # fmt: skip
        tasks.append(PreparedTask(name, 1.0, {"validation": name}))
    made = PreparedMixture("mix", 6, VOCAB.fingerprint, tuple(tasks))
    return write_mixture(tmp_path / "prepared", made)


def test_held_out_rows_of_a_bucket_keep_to_the_experiments_cache(
    trained, prepared, pail, count_fetchers, monkeypatch, tmp_path
):
    pail.folder, there = tmp_path, f"pail://prepared/{prepared.name}"
    opened, made = [], runs.RowFetcher
    monkeypatch.setattr(runs, "RowFetcher", lambda **given: opened.append(given) or made(**given))
    threads, cache = count_fetchers(), tmp_path / "cache"
    config = configs.override(
        LM, [f"data.mixture={there}", "data.disk_gb=4", f"data.cache={cache}"]
    )
    meta = dataclasses.replace(trained.meta, config=configs.to_json(config))
    monkeypatch.setattr(
        checkpoints, "load_params", lambda run: dataclasses.replace(trained, meta=meta)
    )
    expected = runs.held_out_losses("run", mixture=prepared, most_rows=10)
    assert {task: len(losses) for task, losses in expected.items()} == {"a": 7, "b": 10}
    cache.mkdir()
    pail.requests.clear()
    assert runs.held_out_losses("run", most_rows=10) == expected
    assert opened == [{"disk_gb": 4.0, "folder": ""}, {"disk_gb": 4.0, "folder": str(cache)}]
    asked = [request for request in pail.requests if request[1] is not None]
    assert len(asked) == 7 + 10 + 2  # rows, and a file's tail
    assert count_fetchers() == threads and not list(cache.glob("*/rows-*"))


def stage_of(loss):
    return Stage("lm", lambda key: ({}, {}), None, loss or (lambda *_: None), lambda rows: iter(()))


@pytest.mark.parametrize(("most", "rows"), [(10, (7, 10)), (0, (7, 20)), (1024, (7, 20))])
def test_held_out_loss_reads_as_many_rows_as_the_config_says(prepared, most, rows):
    def loss(params, variables, batch, key):
        mask = batch["loss_mask"]
        return LossOutput((mask * (1.0 + batch["task"][:, None])).sum(), mask.sum())

    given = dataclasses.replace(LM, eval_rows=most)
    shards = open_shards(prepared, split="validation")
    evaluation = stages._held_out(given, stage_of(loss), shards, ["a", "b"])
    figures = evaluation.run(EvalState(1, {}, {}))
    for number, (task, expected) in enumerate(zip("ab", rows, strict=True), 1):
        assert figures[task] == number  # the mean over counted ids, padding left out
        assert figures[f"{task}/rows"] == expected and figures[f"{task}/tokens"] == 5 * expected


@pytest.mark.parametrize("wrong", ["eval_rows=-1", "eval_every_steps=0"])
def test_an_evaluation_that_cannot_be_is_one_line(wrong):
    with pytest.raises(UserError, match=wrong.partition("=")[0]):
        configs.override(LM, [wrong])


def test_a_vocabulary_is_read_without_rows(prepared, pail, count_fetchers, tmp_path):
    pail.folder, threads = tmp_path, count_fetchers()
    assert read_vocab(prepared) == VOCAB
    assert read_vocab(f"pail://prepared/{prepared.name}") == VOCAB
    assert len(pail.requests) == 2 and count_fetchers() == threads


@pytest.fixture
def corpus(tmp_path, write_features):
    """A feature folder of ten clips and the text vocabulary of their transcripts."""
    rows = [
        {"id": f"{i}", "audio": f"{i}.wav", "text": "anna has a cat" if i % 2 else "bob",
         "speaker": f"s{i % 3}", "kind": "ab"[i % 2]}
        | ({"split": "validation"} if i == 9 else {})
        for i in range(10)
    ]  # fmt: skip
    write_features(tmp_path / "features", rows, [40 + i for i in range(10)])
    TextTokenizer.train(["anna has a cat", "bob"], kind="word").save(tmp_path / "text.model")
    return tmp_path


def test_a_tokenizer_trains_on_the_chosen_clips(corpus, monkeypatch):
    data = ClipsData(
        str(corpus / "features"), str(corpus / "text.model"), not_speakers=("s2",),
        buckets=BucketConfig(batch_size=2, edges=(48, 64)),
    )  # fmt: skip
    given = SpeechTokenizerExperiment(
        data, MICRO.tokenizer, MICRO.tokenizer_training.config(seed=0)
    )
    fitted = []
    monkeypatch.setattr(training, "fit", lambda *args, **named: fitted.append((args, named)))
    training.train_experiment(given, corpus / "run")
    (stage, train, workdir), named = fitted[0]
    resolved, features = named["resolved"], Features(data.features)
    text = TextTokenizer.load(data.text_vocab)
    assert resolved.model.text_size == text.size and train == given.train
    assert stage.identity["features"] == features.fingerprint
    mine = {i for i in range(9) if features.rows[i]["speaker"] != "s2"}
    batches = [next(stage.batches(2 * number)) for number in range(4)]
    lengths = {int(length) for batch in batches for length in batch["mel_lengths"]}
    assert lengths == {features.lengths[i] for i in mine}
    shapes = jax.eval_shape(stage.init, jax.random.key(0))[0]
    assert jax.tree.structure(stage.axes, is_leaf=lambda x: isinstance(x, tuple)) == (
        jax.tree.structure(shapes)
    )


@pytest.mark.parametrize("kinds", [("a",), ("nothing",)])
def test_a_speech_decoder_trains_on_the_chosen_clips_with_codes(kinds, corpus):
    features, folder = Features(corpus / "features"), corpus / "codes"
    codes = [{**row, "codes": [1, 2, 3, 4, 5][: int(row["id"])]} for row in features.rows]
    artifacts.write_jsonl(folder / "codes.jsonl", codes)
    extra = {"tokenizer": "t", "frame_rate_hz": 12.5, "codebook_size": 7}
    made = {"inputs": {}, "config": {}, "files": ["codes.jsonl"], "extra": extra}
    artifacts.write_manifest(folder, "codes", **made)
    data = ClipsData(str(features.folder), codes=str(folder), kinds=kinds)
    training_config = MICRO.speech_decoder_training.config(seed=0)
    given = SpeechDecoderExperiment(data, MICRO.speech_decoder, training_config)
    if kinds == ("nothing",):
        with pytest.raises(UserError, match="no clips to train on"):
            stages.speech_decoder(given)
        return
    resolved, stage = stages.speech_decoder(given)
    heard = np.concatenate([features.mel(i) for i in (2, 4, 6, 8)])
    found = (resolved.model.codebook_size, resolved.model.num_voices)
    assert found == (7, 3) and stage.identity["tokenizer"] == "t"
    moments = (resolved.model.mel_mean, resolved.model.mel_std)
    np.testing.assert_allclose(moments, (heard.mean(), heard.std()), rtol=1e-6)
    lengths = next(stage.batches(0))["code_lengths"]
    assert set(lengths.tolist()) == {2, 4, 5}
