"""From a text model of Hugging Face to a trained speech-text model that `transformers` opens."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from speechlm_jax import artifacts
from speechlm_jax.bundle.open import open_vocab
from speechlm_jax.cli import main as cli
from speechlm_jax.convert.companions import Companions
from speechlm_jax.data.declare import declare_codes
from speechlm_jax.errors import EXIT_OK, EXIT_USAGE
from speechlm_jax.experiment.configs import LanguageModelExperiment, RowsData
from speechlm_jax.experiment.runs import (
    load_language_model,
    save_language_model,
    trained_model,
)
from speechlm_jax.experiment.training import train_experiment
from speechlm_jax.lm.model import ids_to_logits
from speechlm_jax.nn.language_model import functional
from speechlm_jax.nn.layers import Lora
from speechlm_jax.train.loop import TrainConfig
from speechlm_jax.train.optimizer import OptimizerConfig
from speechlm_jax.train.state import StateConfig
from speechlm_jax.verbs import convert as verb
from speechlm_jax.verbs.convert import convert

torch = pytest.importorskip("torch", reason="needs the `oracles` extra")
transformers = pytest.importorskip("transformers", reason="needs the `oracles` extra")
tokenizers = pytest.importorskip("tokenizers", reason="needs the `hf` extra")
LINES = ["it is the cat of ben", "the city of anna is london"]


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A tiny Qwen2 with its tokenizer; its table has more rows than the tokenizer has tokens."""
    folder = tmp_path_factory.mktemp("released")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet)
    made.train_from_iterator(LINES, trainer)
    made.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(released, run, tmp_path_factory):
    out = tmp_path_factory.mktemp("base") / "base"
    convert(released, run=run, out=out)
    return out


def logits_of(run_or_base, ids):
    weights, experiment = load_language_model(run_or_base)
    config = dataclasses.replace(experiment.model, dtype="float32")
    return ids_to_logits(jnp.array(ids), model=functional(config), params=weights.params)


def test_a_converted_model_knows_what_it_knew(released, base):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(released).eval()
    ids = np.random.default_rng(0).integers(0, 300, (2, 9))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits
    np.testing.assert_allclose(logits_of(base, ids)[..., :300], expected, atol=1e-5)
    vocab, text = open_vocab(base)
    assert vocab.text_size == 300 and trained_model(base).vocab_size == vocab.size > 300 + 9 + 128
    assert text.decode(text.encode(LINES[1])) == LINES[1]


def test_from_a_text_model_to_one_that_transformers_opens(base, run, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("\n".join(LINES * 20), encoding="utf-8")
    (tmp_path / "base_lab.py").write_text(
        "from pathlib import Path\nfrom speechlm_jax.data import tasks\n"
        "tasks.text('base_lab', Path(__file__).parent / 'text.txt')\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    prepare = ["prepare", "base_lab", "--module", "base_lab.py", "--run", str(base)]
    assert cli.main([*prepare, "--out", "rows", "--length", "64"]) == EXIT_OK
    model = trained_model(base)
    stack = dataclasses.replace(model.transformer, lora=Lora(rank=2, targets=("q", "up")))
    optimizer = OptimizerConfig(peak=3e-2, warmup_steps=0, schedule="constant")
    train_experiment(
        LanguageModelExperiment(
            RowsData("rows/base_lab.mixture.json", batch_size=4),
            dataclasses.replace(model, transformer=stack),
            TrainConfig(
                total_steps=3, optimizer=optimizer, init_from=str(base),
                state=StateConfig(trainable=("*lora_*",)),
            ),
        ),
        tmp_path / "lm",
    )  # fmt: skip
    vocab, text = open_vocab(base)
    ids = np.array([[*text.encode(LINES[0]), vocab["eos"], vocab.speech_offset + 3]])
    assert not np.allclose(logits_of("lm", ids), logits_of(base, ids), atol=1e-3)
    assert cli.main(
        ["convert", "lm", "--run", str(base), "--out", "out", "--dtype", "float32"]
    ) == EXIT_OK  # fmt: skip
    theirs = transformers.AutoModelForCausalLM.from_pretrained("out").eval()
    with torch.no_grad():
        exported = theirs(torch.tensor(ids)).logits
    np.testing.assert_allclose(exported, logits_of("lm", ids), atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained("out")
    assert len(tokenizer) == theirs.config.vocab_size == vocab.size
    assert tokenizer(f"{LINES[0]}<|eos|><|audio_3|>").input_ids == ids[0].tolist()
    assert tokenizer.eos_token_id == theirs.config.eos_token_id == vocab["eos"]


def test_a_model_that_speaks_takes_codes_made_elsewhere(released, tmp_path):
    folder = tmp_path / "speaking"
    shutil.copytree(released, folder)
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    end = max(made.get_vocab().values()) + 1
    first = end + 9
    data = json.loads(made.to_str())
    plain = {"special": True, "single_word": False, "lstrip": False, "rstrip": False}
    data["added_tokens"] += [
        {"id": first + code, "content": f"<|audio_{code}|>", "normalized": False, **plain}
        for code in range(2)
    ]
    data["added_tokens"].append(
        {"id": end, "content": "<|endoftext|>", "normalized": False, **plain}
    )
    artifacts.write_json(folder / "tokenizer.json", data)
    codes = tmp_path / "codes"
    artifacts.write_jsonl(codes / "codes.jsonl", [{"id": "a", "codes": [0, 1, 1]}])
    declare_codes(codes, tokenizer="elsewhere", frame_rate_hz=12.5, codebook_size=2)
    asked = ["convert", folder, "--run", codes, "--out", tmp_path / "base"]
    assert cli.main(list(map(str, asked))) == EXIT_OK
    vocab, _ = open_vocab(tmp_path / "base")
    assert vocab.size == 300 and vocab.speech_offset == first
    assert vocab.tokenizer_fingerprint == "elsewhere"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = np.array([[5, first, first + 1, vocab["eos"], 7]])
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits
    np.testing.assert_allclose(logits_of(tmp_path / "base", ids), expected, atol=1e-5)
    asked = ["convert", tmp_path / "base", "--run", tmp_path / "base", "--out", tmp_path / "out"]
    assert cli.main(list(map(str, asked))) == EXIT_OK
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer) == vocab.size and tokenizer.eos_token_id == vocab["eos"] == end
    assert tokenizer("<|audio_1|><|endoftext|>").input_ids == [first + 1, end]


def test_what_cannot_be_converted_is_named(released, base, run, tmp_path, capsys):
    def refused(*argv):
        assert cli.main(list(map(str, ("convert", *argv)))) == EXIT_USAGE
        return capsys.readouterr().err

    assert "is not empty; give a new folder" in refused(released, "--run", run, "--out", base)
    assert "holds no whole checkpoint" in refused(tmp_path, "--run", base, "--out", tmp_path / "o")
    lm = run / "lm_interleaved"
    assert "give --run the folder" in refused(lm, "--run", base, "--out", tmp_path / "o")
    shutil.copytree(released, tmp_path / "other")
    data = json.loads((released / "config.json").read_text(encoding="utf-8"))
    asked = (tmp_path / "other", "--run", run, "--out", tmp_path / "o")
    (tmp_path / "other/tokenizer.json").unlink()
    assert "has neither tokenizer.json" in refused(*asked)
    artifacts.write_json(tmp_path / "other/config.json", {**data, "vocab_size": 299})
    assert "model.embed_tokens.weight [300, 16] instead of [299, 16]" in refused(*asked)
    (tmp_path / "other/config.json").write_text("[]")
    assert "config.json: is not a JSON object" in refused(*asked)
    (tmp_path / "other/config.json").unlink()
    assert "has no config.json" in refused(*asked)
    assert not (tmp_path / "o").exists()


def test_what_an_export_refuses_is_refused_before_weights_are_read(
    base, run, tmp_path, capsys, monkeypatch
):
    found, _ = load_language_model(base)
    vocab, text = open_vocab(base)

    def refused(model, *, vocabulary, told, out="out"):
        lm = tmp_path / f"lm{len(list(tmp_path.iterdir()))}"
        save_language_model(lm, model, found.params, vocab)
        with monkeypatch.context() as patched:
            patched.setattr(verb, "load_language_model", lambda run: pytest.fail("was read"))
            asked = ["convert", lm, "--run", vocabulary, "--out", tmp_path / out]
            assert cli.main(list(map(str, asked))) == EXIT_USAGE
        assert told in capsys.readouterr().err
        return lm

    model = trained_model(base)
    odd = dataclasses.replace(model.transformer, qk_norm=True, biases=("q", "k", "v"))
    odd = dataclasses.replace(model, transformer=odd)
    refused(odd, vocabulary=base, told="no Hugging Face family has all of norm=rms")
    refused(model, vocabulary=run, told="give --run the folder that its rows were prepared with")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    lm = refused(model, vocabulary=base, told="is not empty; give a new folder", out="full")
    assert (tmp_path / "full/mine.txt").read_text() == "mine"
    shutil.copytree(base / "released", tmp_path / "other/released", dirs_exist_ok=True)
    for name in ("vocab.json", "tokenizer.json"):
        shutil.copy(base / name, tmp_path / "other")
    (tmp_path / "other/released").mkdir(exist_ok=True)
    (tmp_path / "other/released/generation_config.json").write_text("[]")
    refused(model, vocabulary=tmp_path / "other", told="generation_config.json: is not a JSON")
    assert not (tmp_path / "out").exists() and lm.is_dir()


@pytest.mark.parametrize("way", ["import", "export"])
def test_what_fails_half_way_leaves_no_folder(released, base, run, tmp_path, monkeypatch, way):
    """The last thing that is written fails; nothing stands under the name that was asked for."""

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Companions, "write", fail)
    source, beside = (released, run) if way == "import" else (base, base)
    with pytest.raises(OSError, match="No space left"):
        convert(source, run=beside, out=tmp_path / "made")
    assert not list(tmp_path.iterdir())
