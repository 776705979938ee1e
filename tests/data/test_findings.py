"""What is wrong with a task's text or splits is counted, told, and refused where it is too much."""

import itertools
import json
import logging
import warnings

import pytest
import tokenizers

with warnings.catch_warnings():  # TensorFlow's own deprecations are not ours to mend
    warnings.simplefilter("ignore")
    import seqio

    from speechlm_jax.data import tasks
    from speechlm_jax.data.prepare import PrepareConfig, prepare

from speechlm_jax import artifacts
from speechlm_jax.data import findings, mixture
from speechlm_jax.data.findings import ENOUGH_TOKENS, check_unknown
from speechlm_jax.errors import UserError
from speechlm_jax.text import TextTokenizer
from speechlm_jax.verbs.prepare import prepare as prepare_verb
from speechlm_jax.vocab import Vocab

pytestmark = pytest.mark.filterwarnings("ignore")

WORDS = "anna lives in the city of paris and bob has a red cat".split()
WORD = TextTokenizer.train([" ".join(WORDS)], kind="word")
CODES_OF = {"tokenizer": "tokenizer-a", "frame_rate_hz": 12.5, "codebook_size": 16}
numbers = itertools.count()


def new_name() -> str:
    return f"findings_{next(numbers)}"


def vocab_of(tokenizer) -> Vocab:
    return Vocab(tokenizer.size, 16, 12.5, tokenizer.fingerprint, "tokenizer-a")


def sentences(number, words=WORDS):
    return [" ".join(words[(i * k) % len(words)] for k in range(1, 9)) + f" {i}"
            for i in range(number)]  # fmt: skip


def prepared(name, out, tokenizer=WORD, **options):
    return prepare(
        name, vocab=vocab_of(tokenizer), tokenizer=tokenizer, out=out,
        config=PrepareConfig(length=64), quiet=True, **options,
    )  # fmt: skip


def counts(path, split, name):
    folders = {task.name: task.splits for task in mixture.read_mixture(path).tasks}
    return artifacts.read_manifest(path.parent / folders[name][split]).counts


def write_codes(folder, rows):
    rows = [{"id": str(i), "codes": [1, 2], **row} for i, row in enumerate(rows)]
    artifacts.write_jsonl(folder / "codes.jsonl", rows)
    artifacts.write_manifest(
        folder, "codes", inputs={}, config={}, files=["codes.jsonl"], extra=CODES_OF
    )
    return folder


def word_level(unknown):
    """A tokenizer.json of the words alone."""
    words = [*WORDS, *([unknown] if unknown else [])]
    made = tokenizers.models.WordLevel(
        {word: i for i, word in enumerate(dict.fromkeys(words))}, unk_token=unknown or "[UNK]"
    )
    made = tokenizers.Tokenizer(made)
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return TextTokenizer(made.to_str().encode())


LETTERS = tokenizers.Tokenizer(
    tokenizers.models.BPE({letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwy ")}, [])
)
LOSSY = TextTokenizer(LETTERS.to_str().encode())  # it leaves x and z out, without a word


@pytest.mark.parametrize(
    ("tokenizer", "strange"),
    [(WORD, "zebra"), (word_level("[UNK]"), "zebra"), (LOSSY, "xzX")],
    ids=["sentencepiece", "unknown_token", "left_out"],
)
@pytest.mark.parametrize("many", [False, True])
def test_unknown_words_are_counted_told_and_refused(tmp_path, caplog, tokenizer, strange, many):
    line = " ".join([*WORDS * 2, *[strange, "a"] * (20 if many else 1)])
    (tmp_path / "a.txt").write_text("\n".join(f"{line}{' anna' * i}" for i in range(6)))
    name = new_name()
    tasks.text(name, tmp_path / "a.txt")
    refused = rf"task {name}: \d+ of \d+ text ids \(\d\d.\d%\) are unknown words; .*--allow-unknown"
    for _ in range(2 * many):  # also when all rows are there
        with pytest.raises(UserError, match=refused) as error:
            prepared(name, tmp_path / "rows", tokenizer)
        assert "\n" not in str(error.value) and "`speechlm vocab`" in str(error.value)
    path = prepared(name, tmp_path / "rows", tokenizer, allow_unknown=many)
    found = [counts(path, split, name) for split in ("train", "validation")]
    total = sum(of_split["unknown_tokens"] for of_split in found)
    assert total == (120 if many else 6) * (3 if tokenizer is LOSSY else 1)
    (told,) = [line for line in caplog.messages if "are unknown words" in line]
    assert told.startswith(f"task {name}: {total} of ")


def test_what_a_vocabulary_can_write_is_not_unknown(tmp_path, caplog):
    exact = TextTokenizer.train(sentences(20), kind="exact", size=300)
    name = new_name()
    tasks.text_function(name, lambda split: ["日本 zebra <unk> 😀"] * 20)
    path = prepared(name, tmp_path, exact)
    assert counts(path, "train", name)["unknown_tokens"] == 0 and "unknown" not in caplog.text


def test_a_task_that_is_half_done_is_refused_when_enough_is_seen(tmp_path):
    def finish(split, plain, unknown):
        artifacts.write_manifest(
            tmp_path / split, "rows", inputs={}, config={},
            counts={"plain_tokens": plain, "unknown_tokens": unknown},
        )  # fmt: skip

    task = {"t": tmp_path}
    check_unknown(task, allow=False)
    finish("validation", 100, 90)
    check_unknown(task, allow=False, least=ENOUGH_TOKENS)  # a handful may be anything
    with pytest.raises(UserError, match=r"90 of 100 text ids \(90.0%\)"):
        check_unknown(task, allow=False)
    finish("validation", 10_000, 2100)
    with pytest.raises(UserError, match=r"2100 of 10000 text ids \(21.0%\)"):
        check_unknown(task, allow=False, least=ENOUGH_TOKENS)
    check_unknown(task, allow=True)
    finish("train", 10_000, 0)
    check_unknown(task, allow=False)


def test_the_held_out_text_is_looked_at_before_the_rest_is_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "ENOUGH_TOKENS", 5)
    (tmp_path / "a.txt").write_text("\n".join(f"zebra lion {i} bear" for i in range(64)))
    name = new_name()
    tasks.text(name, tmp_path / "a.txt")
    with pytest.raises(UserError, match="unknown words"):
        prepared(name, tmp_path / "rows")
    assert [path.parent.name for path in tmp_path.rglob("stage.json")] == ["validation"]


NOTHING = ["", "  ", "\u200b", "\u00a0", "\ufeff", "\0", "\t \u3164"]


def test_documents_that_hold_nothing_are_counted_and_left_out(tmp_path, caplog):
    texts = [*NOTHING, "...!?", *sentences(20)]
    artifacts.write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    codes = write_codes(tmp_path / "codes", [*({"text": text} for text in texts),
                                             {"text": "a red cat", "codes": []}])  # fmt: skip
    names = {kind: new_name() for kind in ("text", "asr", "speech", "function", "own")}
    tasks.text(names["text"], tmp_path / "a.jsonl")
    for kind in ("asr", "speech"):
        getattr(tasks, kind)(names[kind], codes)
    tasks.text_function(names["function"], lambda split: texts)
    seqio.TaskRegistry.add(
        names["own"], tasks.RowSource(seqio.TaskRegistry.get(names["text"]).source.rows),
        preprocessors=[lambda ds: ds.map(lambda row: {"targets": row["text"]}),
                       seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features=tasks.output_features(),
    )  # fmt: skip
    mix = new_name()
    tasks.mixture(mix, {name: 1.0 for name in names.values()})
    path = prepared(mix, tmp_path / "rows", allow_unknown=True)
    left_out = {
        kind: sum(counts(path, split, name)["empty_documents"] for split in ("train", "validation"))
        for kind, name in names.items()
    }
    blank = len(NOTHING)
    assert left_out["text"] == blank and left_out["function"] == 2 * blank
    assert left_out["asr"] == blank + 2  # "...!?" has no words; no codes
    assert left_out["speech"] == 1
    assert left_out["own"] >= blank - 3  # what the word vocabulary writes as an unknown word stays
    assert (
        f"task {names['asr']}: {blank + 2} documents hold nothing and are left out" in caplog.text
    )


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    (tmp_path / "a.txt").write_text("anna lives\n" * 20, encoding="utf-8-sig")
    rows = [json.dumps({"text": "\ufeffanna lives"}) for _ in range(20)]
    (tmp_path / "b.jsonl").write_text("\n".join(rows), encoding="utf-8-sig")
    name = new_name()
    tasks.text(name, [tmp_path / "a.txt", tmp_path / "b.jsonl"])
    path = prepared(name, tmp_path / "rows")
    assert counts(path, "train", name)["unknown_tokens"] == 0
    assert sum(counts(path, s, name)["plain_tokens"] for s in ("train", "validation")) == 80


def test_splits_are_told_and_held_out_text_that_trains_is_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    said = sentences(40)
    rows = [{"text": text, "split": "validation" if i < 5 else "train"}
            for i, text in enumerate(said)]  # fmt: skip
    artifacts.write_jsonl(tmp_path / "a.jsonl", rows)
    artifacts.write_jsonl(tmp_path / "b.jsonl", [{"text": said[7], "split": "validation"}] * 3
                          + [{"text": f"{text.upper()}!", "split": "train"}
                             for text in said[3:9]])  # fmt: skip
    first, second, alone = new_name(), new_name(), new_name()
    tasks.text(first, tmp_path / "a.jsonl")
    tasks.text(second, tmp_path / "b.jsonl")
    tasks.text_function(alone, lambda split: said[:2], splits=["train"])
    mix = new_name()
    tasks.mixture(mix, {first: 1.0, second: 1.0, alone: 1.0})
    prepared(mix, tmp_path / "rows", allow_unknown=True)
    log = caplog.text
    assert f"task {first}: 4 things that its 5 held-out documents say are trained on" in log
    assert f"task {second}: 1 things that its 3 held-out documents say" in log
    assert f"task {alone}: no document is held out" in log
    assert f"task {first}: 35 documents to train on, 5 held out" in log


def test_documents_that_are_in_neither_split_or_too_long_are_told(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    splits_of = ["train", "dev", "", 3, "validation", "Train"]
    rows = [{"text": text, "split": splits_of[i % 6]} for i, text in enumerate(sentences(60))]
    artifacts.write_jsonl(tmp_path / "a.jsonl", rows)
    artifacts.write_jsonl(
        tmp_path / "b.jsonl", [{"text": text, "split": "Train"} for text in sentences(20)]
    )
    some, none, long = new_name(), new_name(), new_name()
    tasks.text(some, tmp_path / "a.jsonl")
    path = prepared(some, tmp_path / "rows")
    for split in ("train", "validation"):
        assert counts(path, split, some)["other_split_documents"] == 40
    told = "10 documents to train on, 10 held out; 40 of other splits are left out"
    assert f"task {some}: {told}" in caplog.text
    tasks.text(none, tmp_path / "b.jsonl")
    with pytest.raises(
        UserError, match="20 are of other splits than train and validation: 'Train'"
    ):
        prepared(none, tmp_path / "rows")
    codes = [[1] * (9 + 90 * (i % 2)) for i in range(20)]
    rows = [{"text": text, "codes": its, "split": "train"}
            for text, its in zip(sentences(20), codes, strict=True)]  # fmt: skip
    write_codes(tmp_path / "codes", rows)
    tasks.asr(long, tmp_path / "codes")
    prepared(long, tmp_path / "rows")
    assert f"task {long}: 10 of 20 documents are longer than a row and are left out" in caplog.text


def test_the_verb_gives_both_splits_of_every_task(tmp_path, monkeypatch):
    WORD.save(tmp_path / "vocab/text.model")
    artifacts.write_json(tmp_path / "vocab/vocab.json", vocab_of(WORD).to_json())
    many, none = new_name(), new_name()
    (tmp_path / "a.txt").write_text("\n".join(sentences(328)))
    tasks.text(many, tmp_path / "a.txt")
    tasks.text_function(none, lambda split: sentences(5) if split == "train" else [])
    mix = new_name()
    tasks.mixture(mix, {many: 1.0, none: 1.0})
    made = prepare_verb(
        mix, run=tmp_path / "vocab", out=tmp_path / "rows", length=64, allow_unknown=True
    )["tasks"]
    assert made[many]["validation"]["documents"] >= 8 and made[many]["validation"]["rows"] >= 1
    assert made[many]["train"]["unknown_tokens"] + made[many]["validation"]["unknown_tokens"] == 328
    assert set(made[none]["validation"].values()) == {0} and made[none]["train"]["documents"] == 5
