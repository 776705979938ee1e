"""The parsers of outside data, each with valid inputs to break; `benchmarks/fuzz.py` runs them."""

import base64
import contextlib
import dataclasses
import gzip
import io
import json
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import safetensors.numpy
import soundfile

from speechlm_jax import artifacts, folder_lock, shipped
from speechlm_jax import config as configs
from speechlm_jax.audio.recordings import CLIPS, read_clips
from speechlm_jax.audio.wav import read_wav
from speechlm_jax.bundle.contents import BUNDLE, Contents, Part, read_contents, write_contents
from speechlm_jax.cli import main as cli
from speechlm_jax.convert.companions import read_companions
from speechlm_jax.convert.model_config import config_from_json, config_to_json
from speechlm_jax.convert.safetensors_folder import INDEX, SINGLE, Folder
from speechlm_jax.convert.tokenizers import FILE, read_ranks, read_tokenizer, token_ids
from speechlm_jax.data import mixture
from speechlm_jax.data.packing import Row
from speechlm_jax.data.row_files import RowFile, find_offsets
from speechlm_jax.data.rows import RowShards, write_row_manifest, write_rows
from speechlm_jax.data.sources import numbered_rows, read_rows, row_to_example
from speechlm_jax.errors import UserError
from speechlm_jax.evals.items import Item, read_items
from speechlm_jax.experiment.configs import load_experiment
from speechlm_jax.interleave.documents import good_documents
from speechlm_jax.lm import bench
from speechlm_jax.lm.presets import preset
from speechlm_jax.lm.sizes import SIZES
from speechlm_jax.quickstart.own_data import text_to_documents
from speechlm_jax.text import TextTokenizer
from speechlm_jax.train import checkpoint_folder, checkpoints, logs, rendezvous, sentinel
from speechlm_jax.vocab import Vocab
from speechlm_jax.world.tables import SHIPPED, load_tables

Parse = Callable[[bytes], Any]
FAST = Path("/dev/shm") if Path("/dev/shm").is_dir() else None  # for inputs, which are files
MODELS = [  # made before the fork, which the library's threads do not survive
    TextTokenizer.train(["it is a red cat", "anna has a hat"] * 9, kind=kind, size=size).model
    for kind, size in (("exact", 300), ("word", 64), ("bpe", 300))
]
TEXT = TextTokenizer(MODELS[0])
VOCAB = Vocab(TEXT.size, 16, 12.5, TEXT.fingerprint, "tokenizer-a")
KINDS = {  # of rows, by the field that their examples are made from
    "codes": {"id": "a", "text": "it is", "codes": [1, 2, 3], "speaker": "ann"},
    "segments": {
        "id": "b", "segments": [{"text": "it "}, {"text": "is", "said": "is", "codes": [1]}],
    },
    "turns": {
        "id": "c",
        "turns": [
            {"role": "user", "segments": [{"codes": [4]}]},
            {"role": "assistant", "segments": [{"text": "it is"}]},
        ],
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Target:
    """A parser with its inputs.

    Attributes:
      name: name for `--target`.
      make: function that writes the parser's files into a folder; returns valid inputs and the
        parser.
      share: weight among all targets in the number of inputs; slow parsers have less.
      expected: exceptions that the parser documents.
    """

    name: str
    make: Callable[[Path], tuple[list[bytes], Parse]]
    share: int = 8
    expected: tuple[type[Exception], ...] = (UserError,)

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[list[bytes], Parse]]:
        """Yields valid inputs and the parser, in a temporary folder."""
        with tempfile.TemporaryDirectory(dir=FAST) as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield self.make(Path(folder))


TARGETS: dict[str, Target] = {}


def target(share: int = 8, expected: tuple[type[Exception], ...] = (UserError,)) -> Callable:
    """Returns a decorator that registers a target's `make` under the function's name."""

    def add(make: Callable[[Path], tuple[list[bytes], Parse]]) -> Callable:
        TARGETS[make.__name__] = Target(make.__name__, make, share, expected)
        return make

    return add


def as_json(*data: Any) -> list[bytes]:
    """Returns each value as the bytes of a JSON file."""
    return [json.dumps(one).encode() for one in data]


def as_lines(*rows: Any) -> bytes:
    """Returns all rows as lines of JSON."""
    return b"\n".join(as_json(*rows)) + b"\n"


def of_file(path: Path, parse: Callable[[], Any]) -> Parse:
    """Returns a parser of bytes, which writes them to the file and calls `parse`."""

    def written(data: bytes) -> Any:
        path.write_bytes(data)
        return parse()

    return written


def all_configs() -> list[Any]:
    """Returns the experiments of the shipped configs."""
    names = [name for name in shipped.names() if name.startswith("configs/")]
    return [load_experiment(shipped.find(name)) for name in names]


@target()
def experiment(folder: Path):
    path = folder / "config.json"
    seeds = as_json(*map(configs.to_json, all_configs()))
    return seeds, of_file(path, lambda: load_experiment(path))


@target()
def overrides(folder: Path):
    found = all_configs()
    seeds = [
        b"train.total_steps=200\ntrain.optimizer.peak=1e-3",
        b'data.mixture="a"\nmodel.transformer.heads=2\nmodel.transformer.kv_heads=1',
        b'train.mesh={"fsdp": 2}\ntrain.state.trainable=["a"]\ndata.batch_size=4',
        b"data.augment=null\nmodel.encoder.latent_dim=5\nloss.ctc_weight=1\ntrain.seed=None",
    ]

    def parse(data: bytes) -> Any:
        assignments = data.decode(errors="surrogateescape").split("\n")
        return configs.override(found[len(data) % len(found)], assignments)

    return seeds, parse


@target()
def bench_config(folder: Path):
    seeds = as_json(*map(configs.to_json, all_configs()))

    def parse(data: bytes) -> Any:
        (folder / "c.json").write_bytes(data)
        return bench.from_experiment(artifacts.read_json(folder / "c.json"), "c.json")

    return seeds, parse


@target()
def manifest(folder: Path):
    (folder / "a").write_bytes(b"a")
    artifacts.write_manifest(
        folder, "codes", inputs={"a": "b"}, config={"c": 1}, files=["a"], counts={"rows": 3}
    )
    path = folder / artifacts.MANIFEST

    def parse() -> Any:
        return artifacts.read_manifest(folder).fingerprint, artifacts.verify(folder)

    return [path.read_bytes()], of_file(path, parse)


@target()
def vocab(folder: Path):
    path = folder / "vocab.json"
    voiced = dataclasses.replace(VOCAB, voices=("ann", "bob"))

    def parse() -> Any:
        data = artifacts.read_json(path)
        found = Vocab.from_json(data if isinstance(data, dict) else {})
        return found.size, found.fingerprint, found["eos"]

    return as_json(VOCAB.to_json(), voiced.to_json()), of_file(path, parse)


@target()
def world(folder: Path):
    path = folder / "world.json"
    return [SHIPPED.read_bytes()], of_file(path, lambda: load_tables(path))


@target()
def items(folder: Path):
    path = folder / "a.jsonl"
    item = dataclasses.asdict(Item("qa/s2t", "ann", "f", "w", "r", "h", 1.0, 1.0))
    return [as_lines(item, item)], of_file(path, lambda: read_items(folder))


def rows(name: str, wrap: Callable[[bytes], bytes] = bytes) -> Callable:
    """Returns the `make` of a target that reads rows from a file and turns them into examples."""

    def make(folder: Path):
        path = folder / name

        def parse() -> None:
            for row in read_rows(path):
                for kind in KINDS:
                    with contextlib.suppress(UserError):
                        row_to_example(path, row, {kind: kind, "text": "text"}, codebook_size=16)

        seeds = [as_lines(*KINDS.values()), *(as_lines(row, row) for row in KINDS.values())]
        return [*map(wrap, seeds), wrap(b"it is\na red cat\n")], of_file(path, parse)

    return make


def as_parquet(data: bytes) -> bytes:
    """Returns rows of JSON lines as Parquet; a line of text becomes a row with "text"."""
    lines = data.splitlines()
    read = [json.loads(line) if line[:1] == b"{" else {"text": line.decode()} for line in lines]
    written = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(read), written)
    return written.getvalue()


TARGETS["rows_jsonl"] = Target("rows_jsonl", rows("a.jsonl"))
TARGETS["rows_txt"] = Target("rows_txt", rows("a.txt"))
TARGETS["rows_gz"] = Target("rows_gz", rows("a.jsonl.gz", lambda data: gzip.compress(data, 1)))
TARGETS["rows_parquet"] = Target("rows_parquet", rows("a.parquet", as_parquet), share=2)


@target()
def documents(folder: Path):
    path = folder / "a.jsonl"

    def parse() -> Any:
        bad: list[dict[str, Any]] = []
        read = [(str(number), row) for number, row in numbered_rows(path)]
        placed = ((at, row) for at, row in read if not isinstance(row, UserError))
        return list(good_documents(placed, bad)), bad

    return [as_lines({"id": "a", "text": "it is", "speaker": "ann"}, {"text": "a"})], of_file(
        path, parse
    )


@target()
def own_text(folder: Path):
    lines, text = folder / "a.jsonl", folder / "a.txt"

    def parse(data: bytes) -> Any:
        path = lines if len(data) % 2 else text
        path.write_bytes(data)
        return text_to_documents(path, words=3)

    return [as_lines({"text": "it is"}, {"text": "a"}), b"it is a cat. a red cat"], parse


@target()
def clips(folder: Path):
    (folder / "a.wav").write_bytes(b"looked at later")
    seed = as_lines({"audio": "a.wav", "text": "it is", "speaker": "ann", "id": "a"})
    return [seed], of_file(folder / CLIPS, lambda: read_clips(folder))


def row_folder(folder: Path) -> Path:
    """Writes a finished folder of two packed rows and a mixture of it; returns the rows' file."""
    one = np.ones(16, np.int32)
    row = Row(ids=one, segments=one, positions=np.arange(16, dtype=np.int32), loss_mask=one > 0)
    path = folder / "rows/a.arrayrecord"
    counts = write_rows(path, [row, row], vocab=VOCAB, length=16)
    file = RowFile(path.name, 2, path.stat().st_size)
    write_row_manifest(
        path.parent, [file], task="a", split="train", vocab=VOCAB, length=16,
        counts=dataclasses.asdict(counts), inputs={}, config={}, seed=0,
    )  # fmt: skip
    made = mixture.PreparedTask(name="a", rate=1.0, splits={"train": "rows"})
    mixture.write_mixture(folder, mixture.PreparedMixture("a", 16, VOCAB.fingerprint, (made,)))
    return path


@target(share=4)
def row_manifest(folder: Path):
    path = row_folder(folder).parent / artifacts.MANIFEST

    def parse() -> Any:
        shards = RowShards(path.parent)
        return len(shards), shards.fingerprint, shards.counts

    return [path.read_bytes()], of_file(path, parse)


@target(share=4)
def mixture_file(folder: Path):
    row_folder(folder)
    path = folder / "a.mixture.json"

    def parse() -> Any:
        return mixture.read_mixture(path).fingerprint, mixture.open_shards(path)

    return [path.read_bytes()], of_file(path, parse)


@target()
def bundle_file(folder: Path):
    part = Part("../tts", "text.model", dataclasses.replace(VOCAB, voices=("ann",)), "f")
    write_contents(folder, Contents("text.model", VOCAB, {"text_to_token": part}))
    path = folder / BUNDLE
    return [path.read_bytes()], of_file(path, lambda: read_contents(folder))


@target(share=2)
def row_file(folder: Path):
    path = row_folder(folder)
    whole = path.read_bytes()

    def parse(data: bytes) -> Any:
        path.write_bytes(data[: len(whole)].ljust(len(whole), b"\0"))  # another size is refused
        return RowShards(path.parent)[1]

    return [whole], parse


@target(expected=(ValueError,))
def offsets(folder: Path):
    path = row_folder(folder)
    seeds = [path.read_bytes()]
    return seeds, of_file(path, lambda: find_offsets(path, 2))


@target()
def checkpoint(folder: Path):
    meta = checkpoint_folder.Meta(
        "lm", 5, 40, {"a": "b"}, {"class": "X"}, "f", {"wall_seconds": 1.0}
    )
    step = folder / "checkpoints/00000005"
    step.mkdir(parents=True)
    (step / "params").write_bytes(b"a")
    checkpoint_folder.seal(step, meta)
    sums = step / checkpoint_folder.CHECKSUMS
    seeds = [(step / checkpoint_folder.META).read_bytes(), sums.read_bytes()]

    def parse(data: bytes) -> Any:
        (folder / checkpoint_folder.META).write_bytes(data)
        sums.write_bytes(data)
        with contextlib.suppress(UserError):
            checkpoint_folder.read_meta(folder)
        return checkpoints.newest_meta(folder)

    return seeds, parse


@target()
def log_lines(folder: Path):
    path = folder / logs.METRICS
    seed = as_lines({"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0})

    def parse() -> Any:
        logs.drop_lines_after(path, 1)
        return logs.logged_at(folder, 1)

    return [seed], of_file(path, parse)


@target()
def lock(folder: Path):
    with folder_lock.FolderLock(folder):
        seed = (folder / folder_lock.FILE).read_bytes()

    def parse(data: bytes) -> Any:
        holder = folder_lock._parse(data)
        return holder and (str(holder), holder.lives_here)

    return [seed], parse


@target(expected=(ValueError,))
def host_line(folder: Path):
    def parse(data: bytes) -> Any:
        message = rendezvous.parse(data)
        return rendezvous.number_of_host(message.get("host"), 4), rendezvous._listed(
            message.get("missing")
        )

    return as_json({"host": 1, "run": "a", "missing": [2]}, {"refused": "no"}), parse


@target(share=2)
def sentinel_line(folder: Path):
    def parse(data: bytes) -> Any:
        here, there = socket.socketpair()
        with here, there:
            there.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                there.send(data[:60_000])
            there.shutdown(socket.SHUT_WR)
            return sentinel._from_peer(here, 1, 4)

    return [as_lines({"host": 2, "why": "it died"}), as_lines({"ended": True})], parse


@target(share=2)
def sentencepiece_model(folder: Path):
    path = folder / "text.model"
    return MODELS, of_file(path, lambda: encode_and_decode(path))


def encode_and_decode(path: Path) -> Any:
    """Loads a text vocabulary, and encodes and decodes a text with it."""
    found = TextTokenizer.load(path)
    ids = found.encode("it is a b\u00e9 \u4e2d")
    return found.decode(ids), found.fingerprint, found.unknown_id


BYTE_LETTERS = {letter: i for i, letter in enumerate("itsaredcn h")}
TOKENIZERS = [
    {
        "version": "1.0", "added_tokens": [
            {"id": 12, "content": "<|user|>", "special": True, "single_word": False,
             "lstrip": False, "rstrip": False, "normalized": False},
        ],
        "normalizer": None, "post_processor": None, "truncation": None, "padding": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                          "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                    "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "byte_fallback": False, "ignore_merges": False,
                  "vocab": BYTE_LETTERS | {"it": 11}, "merges": [["i", "t"]]},
    },
    {
        "version": "1.0", "added_tokens": [], "normalizer": {"type": "NFC"}, "decoder": None,
        "post_processor": None, "truncation": None, "padding": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {
            "type": "WordLevel", "vocab": {"[UNK]": 0, "it": 1, "is": 2}, "unk_token": "[UNK]",
        },
    },
]  # fmt: skip


@target(share=2)
def tokenizer_json(folder: Path):
    path = folder / FILE

    def parse() -> Any:
        return token_ids(read_tokenizer(folder)), encode_and_decode(path)

    return as_json(*TOKENIZERS), of_file(path, parse)


@target()
def tiktoken_ranks(folder: Path):
    path = folder / "tokenizer.model"
    pieces = [*(bytes([byte]) for byte in range(256)), b"it", b"is"]
    lines = [f"{base64.b64encode(piece).decode()} {i}" for i, piece in enumerate(pieces)]
    return ["\n".join(lines).encode()], of_file(path, lambda: read_ranks(path))


@target()
def model_config(folder: Path):
    path = folder / "config.json"
    models = [preset(size, vocab_size=512) for size in SIZES]
    seeds = as_json(*(config_to_json(model, dtype="bfloat16", length=64) for model in models))

    def parse() -> Any:
        return config_from_json(Folder(folder).config, str(folder))

    return seeds, of_file(path, parse)


@target()
def model_companions(folder: Path):
    names = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
    seeds = as_json(
        {"eos_token_id": [2, 3], "temperature": 0.8, "top_p": 1.0, "do_sample": True},
        {"chat_template": "{{ a }}", "eos_token": {"content": "it"}, "bos_token": "is"},
        {"additional_special_tokens": ["it", {"content": "is"}], "pad_token": "it"},
    )

    def parse(data: bytes) -> Any:
        for name in names:
            (folder / name).unlink(missing_ok=True)
        (folder / names[len(data) % len(names)]).write_bytes(data)
        return read_companions(folder, {"it": 2, "is": 3}, size=8)

    return seeds, parse


WEIGHTS = {"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float16)}


@target()
def safetensors_file(folder: Path):
    path = folder / SINGLE

    def parse() -> Any:
        found = Folder(folder)
        return [found.read(name) for name in found.shapes]

    return [safetensors.numpy.save(WEIGHTS)], of_file(path, parse)


@target()
def safetensors_index(folder: Path):
    (folder / "1.safetensors").write_bytes(safetensors.numpy.save(WEIGHTS))
    path = folder / INDEX
    seed = {"metadata": {}, "weight_map": {"a": "1.safetensors", "b": "1.safetensors"}}
    return as_json(seed), of_file(path, lambda: Folder(folder).shapes)


def audio(name: str, **written: Any) -> Callable:
    """Returns the `make` of a target that reads recordings in a format."""

    def make(folder: Path):
        seeds = []
        for channels in (1, 2):
            noise = np.random.default_rng(channels).normal(0, 0.1, (1600, channels))
            made = io.BytesIO()
            soundfile.write(made, noise, 16_000, **written)
            seeds.append(made.getvalue())
        path = folder / name
        return seeds, of_file(path, lambda: read_wav(path, max_seconds=30.0))

    return make


TARGETS["wav"] = Target("wav", audio("a.wav", format="WAV", subtype="PCM_16"), share=4)
TARGETS["wav_float"] = Target("wav_float", audio("a.wav", format="WAV", subtype="FLOAT"), share=2)
TARGETS["flac"] = Target("flac", audio("a.flac", format="FLAC"), share=2)
TARGETS["ogg"] = Target("ogg", audio("a.ogg", format="OGG"), share=1)
TARGETS["mp3"] = Target("mp3", audio("a.mp3", format="MP3"), share=2)


@target(share=1)
def arguments(folder: Path):
    (folder / "a.wav").write_bytes(b"RIFF")
    (folder / "a.jsonl").write_bytes(b"{}")
    lines = [
        "train configs/lm_150m.py train.seed=2 --workdir a --hosts 2 --host 1 --coordinator h:1",
        "bench train 1.5B rows=4 --vocab 512 --dtype float32", "chat a.wav --mode speech_only",
        "plan configs/lm_1b5.py --topology v5e:4x8 --length 4096 --search --slices 2",
        "prepare a --module a.b --run b --length 16", "tokenize a.wav b --out c --audio-anywhere",
        "synthesize it --voice ann --temperature 0.5 --seed 1", "speak a.jsonl --out a",
        "interleave a.jsonl --span-corruption-ratio 0.5", "vocab a.jsonl --size 300 --field text",
        "evaluate a/b --run c --quiet", "quickstart --size micro --speech a --text b --log-json",
        "convert a --run b --dtype float32 --length 64", "speak 1 --verbose --out a.wav",
    ]  # fmt: skip
    seeds = [line.replace(" ", "\0").encode() for line in lines]

    def parse(data: bytes) -> Any:
        words = data.decode(errors="surrogateescape").split("\0")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            read = cli.parse(words)
            with contextlib.chdir(folder):
                read.check(read)

    return seeds, parse
