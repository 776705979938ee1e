"""Every file in configs/ says what it is, loads, survives JSON, and fits its data and itself."""

import ast
import dataclasses
import json
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechlm_jax import config as configs
from speechlm_jax import shipped
from speechlm_jax.audio.augment import AugmentConfig
from speechlm_jax.audio.features import write_features
from speechlm_jax.audio.mel import WHISPER
from speechlm_jax.audio.wav import write_wav
from speechlm_jax.cli import main as cli
from speechlm_jax.experiment import training
from speechlm_jax.experiment.configs import (
    Experiment,
    LanguageModelExperiment,
    SpeechTokenizerExperiment,
    experiment_from_json,
    load_experiment,
)
from speechlm_jax.lm.model import ids_to_logits
from speechlm_jax.nn.language_model import functional
from speechlm_jax.text import TextTokenizer
from speechlm_jax.train.optimizer import make_schedule

FILES = [name for name in shipped.names() if name.startswith("configs/")]
ROOT = Path(shipped.__file__).parents[1]


def _load(name: str) -> Experiment:
    return load_experiment(shipped.find(name))


def _header(name: str) -> str:
    return ast.get_docstring(ast.parse(shipped.find(name).read_bytes())) or ""


@pytest.mark.parametrize("name", FILES)
def test_the_header_says_paper_command_machine_time_and_what_to_expect(name):
    header = _header(name)
    fields = [line.partition(":")[0].lower() for line in header.splitlines()]
    for wanted in ("paper", "command", "machine", "time", "expected"):
        assert any(wanted in field for field in fields), f"{name} has no line '{wanted}:'"
    assert "arXiv" in header


@pytest.mark.parametrize("name", FILES)
def test_the_commands_of_the_header_exist(name):
    found = 0
    for line in _header(name).splitlines():
        command = line.partition("  (")[0]
        if "speechlm train" in command:
            arguments = cli.parse(shlex.split(command[command.index("speechlm train") :])[1:])
            assert shipped.find(arguments.config) == shipped.find(name)
            assert configs.override(_load(name), arguments.overrides)
            found += 1
        if "python " in command:
            assert (ROOT / shlex.split(command[command.index("python ") :])[1]).is_file()
            found += 1
    assert found


@pytest.mark.parametrize("name", FILES)
def test_a_config_survives_json_and_overrides(name):
    loaded = _load(name)
    data = json.loads(json.dumps(configs.to_json(loaded)))
    assert experiment_from_json(data, name) == loaded
    assert configs.override(loaded, ["train.seed=7"]).train.seed == 7


@pytest.mark.parametrize("name", FILES)
def test_the_learning_rate_falls_within_the_run(name):
    train = _load(name).train
    steps = train.total_steps or 10_000  # 0: as many as the plan has rows
    rates = make_schedule(train.optimizer, steps)(jnp.arange(1, steps + 1))
    assert float(rates.max()) == pytest.approx(train.optimizer.peak, rel=1e-3)
    assert float(rates[-1]) == pytest.approx(train.optimizer.final, rel=1e-3)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """Two speakers, each saying two words twice, as tones of about half a second."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    rows = []
    for speaker, hz in (("ann", 200.0), ("bob", 120.0)):
        for number, word in enumerate(["one", "two", "two", "one"]):
            seconds = np.arange(int(16_000 * rng.uniform(0.4, 0.6))) / 16_000
            wav = 0.2 * np.sin(2 * np.pi * hz * (1 + (word == "two")) * seconds)
            row = {"audio": f"{speaker}{number}.wav", "text": word, "speaker": speaker}
            write_wav(folder / row["audio"], wav.astype(np.float32))
            rows.append(row)
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def _stage(given: SpeechTokenizerExperiment, recordings, out, monkeypatch):
    """The stage that the loop would get for the experiment on these recordings."""
    mel = dataclasses.replace(WHISPER, num_mels=given.model.encoder.num_mels, f_max=4000.0)
    features = write_features(recordings, out / "features", mel, workers=0, progress="")
    text = TextTokenizer.train([row["text"] for row in features.rows], kind="word")
    text.save(out / "text.model")
    data = dataclasses.replace(
        given.data,
        features=str(out / "features"),
        text_vocab=str(out / "text.model"),
        not_speakers=("bob",),
    )
    stages = []
    monkeypatch.setattr(training, "fit", lambda stage, *_, **__: stages.append(stage))
    training.train_experiment(dataclasses.replace(given, data=data), out / "run")
    return stages[0]


TOKENIZERS = [n for n in FILES if isinstance(_load(n), SpeechTokenizerExperiment)]
LANGUAGE_MODELS = [n for n in FILES if isinstance(_load(n), LanguageModelExperiment)]


def test_every_kind_of_config_is_tried():
    assert sorted(TOKENIZERS + LANGUAGE_MODELS) == FILES


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_config_fits_its_data(name, recordings, tmp_path, monkeypatch):
    given = _load(name)
    stage = _stage(given, recordings, tmp_path, monkeypatch)
    batch = next(stage.batches(0))
    assert {len(part) for part in batch.values()} == {given.data.buckets.batch_size}
    key = jax.random.key(0)
    params, variables = jax.eval_shape(stage.init, key)
    drawn = jax.eval_shape(stage.prepare, params, variables, batch, key)
    output = jax.eval_shape(stage.loss, params, variables, {**batch, **drawn}, key)
    assert output.loss_sum.shape == output.weight_sum.shape == ()
    after = jax.eval_shape(stage.finish, variables, output.statistics)
    assert jax.tree.structure(after) == jax.tree.structure(variables)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_configs_stream_goes_on_where_it_stopped(
    name, recordings, tmp_path, monkeypatch
):
    given = _load(name)
    stage = _stage(given, recordings, tmp_path, monkeypatch)
    stream = stage.batches(0)
    first, second = next(stream), next(stream)
    again = next(stage.batches(given.data.buckets.batch_size))
    for field in second:
        np.testing.assert_array_equal(second[field], again[field])
    assert not np.array_equal(first["mel"], second["mel"])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_without_variation_rows_are_the_clips_themselves(name, recordings, tmp_path, monkeypatch):
    given = _load(name)
    plain = dataclasses.replace(given, data=dataclasses.replace(given.data, augment=None))
    still = AugmentConfig(seed=3)
    unvaried = dataclasses.replace(given, data=dataclasses.replace(given.data, augment=still))
    one, two = (
        next(_stage(case, recordings, tmp_path, monkeypatch).batches(0))
        for case in (plain, unvaried)
    )
    assert one.keys() == two.keys() and one["mel"].dtype == np.float32
    for field in one:
        np.testing.assert_array_equal(one[field], two[field])


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_language_model_config_has_logits_for_its_ids(name):
    given = _load(name)
    config = dataclasses.replace(given.model, vocab_size=given.model.vocab_size or 1000)
    model = functional(config)
    ids = jax.ShapeDtypeStruct((2, 16), jnp.int32)
    logits = jax.eval_shape(
        lambda params, ids: ids_to_logits(ids, model=model, params=params), model.shapes, ids
    )
    assert logits.shape == (2, 16, config.vocab_size)
    assert logits.dtype == jnp.float32
