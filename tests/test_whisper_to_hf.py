"""Whisper out of CTranslate2's file: a made-up model goes the whole way, a broken one nowhere."""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from speechlm_jax.audio.wav import read_wav
from speechlm_jax.errors import UserError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import real_weights  # noqa: E402
from whisper_to_hf import whisper_to_hf  # noqa: E402

sys.path.remove(str(BENCHMARKS))

EMBED, MLP, HEADS, MELS, LAYERS = 16, 24, 2, 8, 2
SPECIALS = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>",
            "<|transcribe|>", "<|startofprev|>", "<|notimestamps|>"]  # fmt: skip
VOCAB = 12 + len(SPECIALS)
SETTINGS = {
    "decoder/activation": np.int8(3),
    "encoder/num_heads": np.int16(HEADS),
    "decoder/num_heads": np.int16(HEADS),
}
TOLD = {"alignment_heads": [[1, 0]], "lang_ids": [14, 15], "suppress_ids": [1, 2],
        "suppress_ids_begin": [3, 12]}  # fmt: skip


def attention(place: str, theirs: str, stacks: list[list[str]]) -> dict:
    """The maps of an attention: CTranslate2's name -> those that it stacks."""
    return {
        f"{place}/linear_{number}": [f"{theirs}.{map_}" for map_ in maps]
        for number, maps in enumerate(stacks)
    }


def both_names() -> dict[str, list[str]]:
    names = {f"encoder/conv{i}": [f"encoder.conv{i}"] for i in (1, 2)}
    for side in ("encoder", "decoder"):
        names[f"{side}/layer_norm"] = [f"{side}.layer_norm"]
        for i in range(LAYERS):
            ours, theirs = f"{side}/layer_{i}", f"{side}.layers.{i}"
            stacks = [["q_proj", "k_proj", "v_proj"], ["out_proj"]]
            names |= attention(f"{ours}/self_attention", f"{theirs}.self_attn", stacks)
            names[f"{ours}/self_attention/layer_norm"] = [f"{theirs}.self_attn_layer_norm"]
            names[f"{ours}/ffn/layer_norm"] = [f"{theirs}.final_layer_norm"]
            names |= {f"{ours}/ffn/linear_{n}": [f"{theirs}.fc{n + 1}"] for n in (0, 1)}
            if side == "decoder":
                stacks = [["q_proj"], ["k_proj", "v_proj"], ["out_proj"]]
                names |= attention(f"{ours}/attention", f"{theirs}.encoder_attn", stacks)
                names[f"{ours}/attention/layer_norm"] = [f"{theirs}.encoder_attn_layer_norm"]
    return names


def shape_of(name: str, end: str) -> tuple[int, ...]:
    wide = MLP if name.endswith("fc1") else EMBED
    if end == "bias" or "norm" in name:
        return (wide,)
    if "conv" in name:
        return (EMBED, MELS if name.endswith("1") else EMBED, 3)
    return (wide, MLP if name.endswith("fc2") else EMBED)


def made_up() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The same weights in both worlds: as `transformers` names them, and as CTranslate2 does."""
    rng = np.random.default_rng(0)
    hf, ct = {}, {}
    draw = lambda shape: (rng.normal(size=shape) / 4).astype(np.float16)  # noqa: E731
    for name, maps in both_names().items():
        for end in ("weight", "bias"):
            parts = [draw(shape_of(map_, end)) for map_ in maps]
            for i, map_ in enumerate(maps):
                if end == "bias" and map_.endswith("k_proj"):
                    parts[i] = np.zeros_like(parts[i])
                else:
                    hf[f"model.{map_}.{end}"] = parts[i]
            theirs = {"weight": "gamma", "bias": "beta"}[end] if "norm" in name else end
            ct[f"{name}/{theirs}"] = np.concatenate(parts)
    for side, positions in (("encoder", 20), ("decoder", 12)):
        table = draw((positions, EMBED))
        hf[f"model.{side}.embed_positions.weight"] = table
        ct[f"{side}/position_encodings/encodings"] = table
    ct["decoder/embeddings/weight"] = draw((VOCAB, EMBED))
    hf["model.decoder.embed_tokens.weight"] = ct["decoder/embeddings/weight"]
    return hf, ct


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def file_of(variables, *, spec="WhisperSpec", version=6) -> bytes:
    kinds = [np.dtype(name) for name in ("f4", "i1", "i2", "i4", "f2")]
    made = struct.pack("<I", version) + text(spec) + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        value = np.asarray(value)
        made += text(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        made += struct.pack("<BI", kinds.index(value.dtype), value.nbytes) + value.tobytes()
    alias = text("decoder/projection/weight") + text("decoder/embeddings/weight")
    return made + struct.pack("<I", 1) + alias


def convert(folder: Path, data: bytes, *, parts: int = 1) -> Path:
    """Writes the files of a wheel, the model in some parts, and converts them."""
    cuts = [len(data) * i // parts for i in range(parts + 1)]
    files = [folder / f"model.bin.part{i}" for i in range(parts)]
    for i, file in enumerate(files):
        file.write_bytes(data[cuts[i] : cuts[i + 1]])
    added = [{"id": 12 + i, "content": token, "special": True, "single_word": False,
              "lstrip": False, "rstrip": False, "normalized": False}
             for i, token in enumerate(SPECIALS)]  # fmt: skip
    letters = {letter: i for i, letter in enumerate("abcdefghijkl")}
    model = {"type": "BPE", "vocab": letters, "merges": []}
    tokenizer = {"version": "1.0", "added_tokens": added, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "config.json").write_text(json.dumps(TOLD))
    out = folder / "out"
    out.mkdir()
    whisper_to_hf(*files, folder / "tokenizer.json", folder / "config.json", out)
    return out


@pytest.mark.parametrize("parts", [1, 2])
def test_weights_have_the_names_of_transformers(tmp_path, parts):
    hf, ct = made_up()
    found = load_file(
        convert(tmp_path, file_of({**SETTINGS, **ct}), parts=parts) / "model.safetensors"
    )
    assert found.keys() == hf.keys()
    for name, tensor in hf.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def test_transformers_opens_the_folder(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the `oracles` extra")
    torch = pytest.importorskip("torch", reason="needs the `oracles` extra")
    hf, ct = made_up()
    out = convert(tmp_path, file_of({**SETTINGS, **ct}))
    model, info = transformers.WhisperForConditionalGeneration.from_pretrained(
        out, output_loading_info=True
    )
    assert not any(info.values()), info
    made, config = model.generation_config, model.config
    assert (config.decoder_start_token_id, made.eos_token_id) == (13, 12)
    assert (made.no_timestamps_token_id, made.suppress_tokens) == (19, [1, 2])
    assert (made.is_multilingual, made.forced_decoder_ids) == (False, [[1, 19]])
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(out)
    assert extractor.feature_size == MELS
    with torch.no_grad():
        mel = torch.ones(1, MELS, 2 * len(hf["model.encoder.embed_positions.weight"]))
        logits = model(mel, decoder_input_ids=torch.tensor([[13, 2]])).logits
    assert logits.shape == (1, 2, VOCAB) and bool(torch.isfinite(logits).all())


def biased() -> dict[str, np.ndarray]:
    name = "encoder/layer_0/self_attention/linear_0/bias"
    return {name: np.ones(3 * EMBED, np.float16)}


@pytest.mark.parametrize(
    "data, said",
    [
        (b"", "is no whole model of CTranslate2"),
        (file_of(SETTINGS)[:-5], "model.bin.part0: is no whole model of CTranslate2"),
        (file_of(SETTINGS, version=5), "is no model of CTranslate2 of version 6"),
        (file_of(SETTINGS, spec="TransformerSpec"), "holds TransformerSpec, not a Whisper"),
        (file_of({**SETTINGS, "decoder/activation": np.int8(0)}), "not a Whisper as it was"),
        (file_of({**SETTINGS, "encoder/conv3/weight": np.ones(3, "f4")}), "conv3/weight: is no"),
        (file_of({**SETTINGS, **biased()}), "has a bias of the keys"),
        (file_of({"a": np.ones(2, "f4")}).replace(b"\x00\x08\0\0\0", b"\x09\x08\0\0\0"), "type 9"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path, data, said):
    with pytest.raises(UserError, match=said):
        convert(tmp_path, data)


@pytest.mark.slow
@pytest.mark.parametrize(
    "release, parameters", [("whisper-tiny-en", 37_760_256), ("whisper-base", 72_593_920)]
)
def test_released_weights_transcribe(real_data, tmp_path, release, parameters):
    transformers = pytest.importorskip("transformers", reason="needs the `oracles` extra")
    manifest = real_data("speech_librispeech_201spk") / "manifest.jsonl"
    try:
        made = real_weights.make(release, tmp_path / "out")
    except UserError as error:
        pytest.skip(str(error))
    assert made["parameters"] == parameters
    model = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "out")
    processor = transformers.WhisperProcessor.from_pretrained(tmp_path / "out")
    row = json.loads(manifest.read_text().splitlines()[0])
    wav = read_wav(manifest.parent / row["audio"])
    features = processor(wav, sampling_rate=16_000, return_tensors="pt").input_features
    said = processor.batch_decode(model.generate(features), skip_special_tokens=True)[0]
    words = set(row["text"].lower().split())
    heard = "".join(c for c in said.lower() if c.isalnum() or c == " ").split()
    assert len(words & set(heard)) > 0.6 * len(words), said
