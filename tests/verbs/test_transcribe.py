"""A tiny Whisper comes in, writes what `transformers` writes, and goes out as it came."""

import json

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file

from speechlm_jax.audio.mel import wav_to_mel
from speechlm_jax.audio.wav import read_wav
from speechlm_jax.cli import main as cli
from speechlm_jax.errors import EXIT_OK, EXIT_USAGE
from speechlm_jax.verbs.transcribe import Window, to_srt

torch = pytest.importorskip("torch", reason="needs the `oracles` extra")
transformers = pytest.importorskip("transformers", reason="needs the `oracles` extra")
tokenizers = pytest.importorskip("tokenizers", reason="needs the `hf` extra")

SPECIALS = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|fr|>", "<|transcribe|>",
            "<|notimestamps|>")  # fmt: skip


def make_released(folder):
    """A Whisper with windows of 1 s, its vocabulary, and what stands beside its weights."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=260, initial_alphabet=alphabet)
    made.train_from_iterator(["the cat of anna"], trainer)
    made.add_special_tokens(list(SPECIALS))
    made.save(str(folder / "tokenizer.json"))
    ids = made.get_vocab()
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=len(ids), d_model=16, encoder_layers=2, decoder_layers=1, num_mel_bins=80,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24,
        decoder_ffn_dim=24, max_source_positions=50, max_target_positions=12,
        decoder_start_token_id=ids["<|startoftranscript|>"], eos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"], bos_token_id=ids["<|endoftext|>"],
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.mul_(8.0 if tensor.ndim > 1 else 1.0)
    model.save_pretrained(folder)
    generation = {
        "decoder_start_token_id": ids["<|startoftranscript|>"], "is_multilingual": True,
        "eos_token_id": ids["<|endoftext|>"], "begin_suppress_tokens": [ids["a"]],
        "suppress_tokens": [ids[name] for name in SPECIALS[1:]],
    }  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return model, made


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """(model, its tokenizer, its folder, the run that it became)."""
    folder = tmp_path_factory.mktemp("whisper")
    made = make_released(folder)
    run = folder.parent / "whisper-run"
    assert cli.main(["convert", str(folder), "--out", str(run)]) == EXIT_OK
    return *made, folder, run


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """2.4 s of noise, at another rate."""
    path = tmp_path_factory.mktemp("heard") / "talk.wav"
    wav = 0.1 * np.random.default_rng(0).normal(size=int(2.4 * 8000))
    soundfile.write(path, wav, 8000)
    return path


def test_windows_are_read_as_transformers_reads_them(released, recording, capsys):
    model, tokenizer, _, run = released
    asked = ["transcribe", str(recording), "--run", str(run), "--format", "json"]
    assert cli.main([*asked, "--language", "fr"]) == EXIT_OK
    windows = json.loads(capsys.readouterr().out)["windows"]
    assert [(w["start"], w["end"]) for w in windows] == [(0, 1), (1, 2), (2, pytest.approx(2.4))]
    ids, wav = tokenizer.get_vocab(), read_wav(recording)
    names = ("<|startoftranscript|>", "<|fr|>", "<|transcribe|>", "<|notimestamps|>")
    prompt = [ids[name] for name in names]
    for window, first in zip(windows, range(0, 3 * 16_000, 16_000), strict=True):
        part = wav[first : first + 16_000]
        mel = wav_to_mel(np.pad(part, (0, 16_000 - len(part))))
        with torch.no_grad():
            said = transformers.GenerationMixin.generate(
                model, torch.tensor(mel).T[None], do_sample=False, max_length=12,
                decoder_input_ids=torch.tensor([prompt]), begin_suppress_tokens=[ids["a"]],
                suppress_tokens=[ids[name] for name in SPECIALS[1:]],
            )[0]  # fmt: skip
        assert window["text"] == tokenizer.decode(said[4:].tolist()).strip()


def test_formats_of_a_text(released, recording, capsys):
    run = str(released[3])
    assert cli.main(["transcribe", str(recording), "--run", run]) == EXIT_OK
    assert len(capsys.readouterr().out.splitlines()) >= 3
    windows = [Window(0.0, 1.0, "a"), Window(1.0, 2.0, ""), Window(3599.5, 3661.25, "b")]
    assert to_srt(windows) == (
        "1\n00:00:00,000 --> 00:00:01,000\na\n\n2\n00:59:59,500 --> 01:01:01,250\nb\n"
    )


def test_an_export_is_bit_equal_and_has_what_stood_beside_it(released, tmp_path, capsys):
    _, _, folder, run = released
    out = tmp_path / "out"
    assert cli.main(["convert", str(run), "--out", str(out), "--dtype", "float32"]) == EXIT_OK
    capsys.readouterr()
    before, after = (load_file(place / "model.safetensors") for place in (folder, out))
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    for name in ("tokenizer.json", "generation_config.json"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    again = tmp_path / "again"
    assert cli.main(["convert", str(out), "--out", str(again)]) == EXIT_OK
    assert json.loads(capsys.readouterr().out)["weights"]
    refused(["convert", folder, "--out", again], "is not empty; give a new folder", capsys)


def refused(asked, told, capsys):
    assert cli.main(list(map(str, asked))) == EXIT_USAGE
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1, said


def test_what_cannot_be_read_is_one_line(released, recording, tmp_path, capsys):
    _, _, folder, run = released
    transcribe = ["transcribe", recording, "--run", run]
    refused([*transcribe, "--language", "xx"], "--language xx: this model has none", capsys)
    refused([*transcribe, recording, "--format", "srt"], "takes one recording", capsys)
    refused(["transcribe", recording.parent, "--run", run], "is a folder; give recordings", capsys)
    refused(["transcribe", recording, "--run", folder], "", capsys)
    out = tmp_path / "codes"
    refused(["tokenize", recording, "--run", run, "--out", out], "makes no codes", capsys)
    other = tmp_path / "other"
    other.mkdir()
    data = json.loads((folder / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**data, "encoder_layers": 3}))
    (other / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    refused(["convert", other, "--out", out], "missing: model.encoder.layers.2.", capsys)
