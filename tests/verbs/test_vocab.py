"""A vocabulary of one's own text writes any text, whatever the files, and `prepare` takes it."""

import gzip
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from speechlm_jax import artifacts
from speechlm_jax.bundle.open import open_codes, open_vocab
from speechlm_jax.cli import main as cli
from speechlm_jax.data.formats import Writer
from speechlm_jax.errors import UserError
from speechlm_jax.verbs import vocab as verb

TEXT = [
    f"Chapter {i}: “It was $5.50,” said Zoë;  see http://a.b/c?d={i * 7919}.\n\n\tHe left {word}."
    for i, word in enumerate("early late at noon never soon happily".split() * 8)
]


@pytest.fixture
def codes(tmp_path):
    """A folder of codes made elsewhere."""
    folder = tmp_path / "codes"
    artifacts.write_jsonl(folder / "codes.jsonl", [{"id": "a", "codes": [1, 2]}])
    artifacts.write_manifest(
        folder, "codes", inputs={}, config={}, files=["codes.jsonl"],
        extra={"tokenizer": "tokenizer-a", "frame_rate_hz": 12.5, "codebook_size": 16},
    )  # fmt: skip
    return folder


def write(folder, kind):
    rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXT)
    path = folder / f"mine{kind}"
    if kind == ".txt":
        path.write_text("\n".join(" ".join(text.split()) for text in TEXT), encoding="utf-8-sig")
    elif kind == ".jsonl.gz":
        path.write_bytes(gzip.compress(rows.encode()))
    else:
        path.write_text(rows)
    return path


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".jsonl.gz"])
def test_what_is_learnt_writes_any_text_and_has_the_codes(tmp_path, codes, kind):
    out = tmp_path / "out"
    made = verb.vocab([write(tmp_path, kind)], run=codes, out=out, size=400)
    vocab, text = open_vocab(out)
    assert made["ids"]["text"] == text.size == vocab.text_size <= 400
    assert vocab.codebook_size == 16 and vocab.tokenizer_fingerprint == "tokenizer-a"
    assert made["vocabulary"] == vocab.fingerprint
    writer = Writer(vocab, text)
    for line in [*TEXT, "  \n日本\t☃ \ufeff", "<|user|> <unk>"]:
        example = writer.text(line)
        assert text.decode(example.targets[:-1].tolist()) == line
        assert vocab.is_text(example.targets[:-1]).all()
    # pieces are longer than bytes
    assert len(text.encode(TEXT[0])) < len(TEXT[0].encode()) * 0.7


def test_the_codes_may_be_a_runs(run, tmp_path):
    verb.vocab([write(tmp_path, ".txt")], run=run, out=tmp_path / "out", size=400)
    vocab, _ = open_vocab(tmp_path / "out")
    theirs, _ = open_vocab(run)
    assert vocab.tokenizer_fingerprint == theirs.tokenizer_fingerprint
    assert vocab.text_fingerprint != theirs.text_fingerprint


def test_speakers_of_codes_get_ids(tmp_path, codes):
    path = write(tmp_path, ".txt")
    with pytest.raises(UserError, match="codes: its rows name no speaker"):
        verb.vocab([path], run=codes, out=tmp_path / "out", size=400, voices=codes)
    rows = [{"id": str(n), "codes": [n], "speaker": name} for n, name in enumerate(("Bo", "A", ""))]
    artifacts.write_jsonl(codes / "codes.jsonl", rows)
    made = verb.vocab([path], run=codes, out=tmp_path / "out", size=400, voices=codes)
    assert made["voices"] == ["A", "Bo"] == list(open_vocab(tmp_path / "out")[0].voices)


def test_the_codes_may_be_another_vocabularys(tmp_path, codes):
    path = write(tmp_path, ".txt")
    for run, out in ((codes, "first"), (tmp_path / "first", "second")):
        made = verb.vocab([path], run=run, out=tmp_path / out, size=400)
    assert open_vocab(tmp_path / "first")[0] == open_vocab(tmp_path / "second")[0]
    assert made["vocabulary"] == open_vocab(tmp_path / "first")[0].fingerprint
    for data in ([], {}, {"text_size": -1}, {"strange": 1}):
        artifacts.write_json(tmp_path / "second/vocab.json", data)
        for read in (open_vocab, open_codes):
            with pytest.raises(UserError, match="second/vocab.json: is no vocabulary"):
                read(tmp_path / "second")


def test_long_lines_are_cut_at_blanks_and_nothing_is_lost():
    random = np.random.default_rng(0)
    words = ["a" * int(n) for n in random.integers(1, 3 * verb.PIECE // 2, 60)]
    for text in (" ".join(words), "\n".join(words), "b" * 70_000, ""):
        pieces = list(verb.text_to_pieces(text))
        assert "".join(pieces) == text and max(map(len, pieces), default=0) <= verb.PIECE
    short = " ".join("word" for _ in range(5000))
    assert {len(p.split()[-1]) for p in verb.text_to_pieces(short)} == {4}


def test_long_lines_are_learnt_from(tmp_path, codes):
    """SentencePiece alone leaves lines of more than 4,192 bytes out."""
    (tmp_path / "one_line.txt").write_text("unmistakable " * 6000 + "z" * 70_000)
    verb.vocab([tmp_path / "one_line.txt"], run=codes, out=tmp_path / "out", size=400)
    assert len(open_vocab(tmp_path / "out")[1].encode(" unmistakable")) == 1


def test_large_texts_are_thinned_evenly():
    for number in (0, 1, 10, 11, 1000, 1023):
        kept = [int(piece) for piece in verb._thinned(map(str, range(number)), 10)]
        assert len(set(np.diff(kept))) <= 1 and kept[:1] == [0][:number] and len(kept) <= 10
        assert number < 10 or len(kept) > 5


def test_the_same_text_may_be_given_again_but_no_other_vocabulary_is_lost(tmp_path, codes, run):
    path = write(tmp_path, ".jsonl")
    first = verb.vocab([path], run=codes, out=tmp_path / "out", size=400)
    assert verb.vocab([path], run=codes, out=tmp_path / "out", size=400) == first
    with pytest.raises(UserError, match="holds another vocabulary"):
        verb.vocab([path], run=codes, out=tmp_path / "out", size=350)
    with pytest.raises(UserError, match="holds another vocabulary"):
        verb.vocab([path], run=codes, out=run, size=350)
    artifacts.write_bytes(tmp_path / "out/text.model", (run / "text.model").read_bytes())
    with pytest.raises(UserError, match="text.model: is not the text vocabulary that vocab.json"):
        open_vocab(tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.txt"], "none.txt: no such text file"),
        (["."], "is a folder; name its files"),
        (["empty.txt"], "holds no words"),
        (["mine.jsonl", "--field", "story"], "row 'mine.jsonl:1' has no field 'story'"),
        (["mine.jsonl", "--size", "100"], "100 entries are too few .* give at least 3"),
    ],
)
def test_mistakes_are_one_line(tmp_path, codes, monkeypatch, capsys, arguments, message):
    write(tmp_path, ".jsonl")
    (tmp_path / "empty.txt").write_text(" \n")
    monkeypatch.chdir(tmp_path)
    command = ["vocab", *arguments, "--run", "codes", "--out", "out"]
    assert cli.main(command) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


CONFIG = """
from speechlm_jax.experiment.configs import LanguageModelExperiment, RowsData
from speechlm_jax.nn.language_model import LanguageModelConfig
from speechlm_jax.nn.transformer import TransformerConfig
from speechlm_jax.train.loop import TrainConfig
from speechlm_jax.train.optimizer import OptimizerConfig


def config():
    return LanguageModelExperiment(
        RowsData("rows/mine.mixture.json", batch_size=4),
        LanguageModelConfig(0, TransformerConfig(1, 16, 2, 2, 8, 32)),
        TrainConfig(total_steps=2, optimizer=OptimizerConfig(peak=1e-3, warmup_steps=0)),
    )
"""


@pytest.mark.slow
def test_from_text_of_ones_own_to_a_training(tmp_path, codes):
    write(tmp_path, ".txt")
    (tmp_path / "mine.py").write_text(
        "from speechlm_jax.data import tasks\ntasks.text('mine', 'mine.txt')\n"
    )
    (tmp_path / "config.py").write_text(CONFIG)
    speechlm = [sys.executable, "-m", "speechlm_jax.cli.main"]
    for command in (
        "vocab mine.txt --run codes --out vocab --size 400",
        "prepare mine --module mine.py --run vocab --out rows --length 64",
        "train config.py --workdir work",
    ):
        done = subprocess.run(
            [*speechlm, *command.split()], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        if command.startswith("prepare"):
            task = json.loads(done.stdout)["tasks"]["mine"]
            assert task["train"]["unknown_tokens"] == 0 and task["validation"]["documents"] == 7
