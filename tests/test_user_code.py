"""Whatever a user's code raises becomes one line that names whose it is; what is ours passes."""

import errno
import functools
import itertools
import json
import warnings

import pytest

with warnings.catch_warnings():  # TensorFlow's own deprecations are not ours to mend
    warnings.simplefilter("ignore")
    import seqio
    import tensorflow as tf

    from speechlm_jax.data import tasks
    from speechlm_jax.data.prepare import PrepareConfig, prepare

from speechlm_jax import artifacts
from speechlm_jax.errors import Stopped, UserError
from speechlm_jax.shipped import import_module
from speechlm_jax.text import TextTokenizer
from speechlm_jax.user_code import user_code
from speechlm_jax.vocab import Vocab

pytestmark = pytest.mark.filterwarnings("ignore")

TOKENIZER = TextTokenizer.train(["a red cat"], kind="word")
VOCAB = Vocab(TOKENIZER.size, 16, 12.5, TOKENIZER.fingerprint, "tokenizer-a")
numbers = itertools.count()


def new_name() -> str:
    return f"code_{next(numbers)}"


def refused(name, out) -> str:
    with pytest.raises(UserError) as error:
        prepare(
            name, vocab=VOCAB, tokenizer=TOKENIZER, out=out / "rows",
            config=PrepareConfig(length=32), quiet=True,
        )  # fmt: skip
    line = str(error.value)
    assert line.startswith(f"task {name}") and "\n" not in line and "node" not in line
    assert not list(out.rglob("*.mixture.json")) and not list(out.rglob(artifacts.MANIFEST))
    return line


def told(error: BaseException) -> str:
    with pytest.raises(UserError) as caught, user_code("task x"):
        raise error
    return str(caught.value)


def test_one_line_with_the_kind_the_words_and_the_place():
    assert told(KeyError("story")).startswith("task x: KeyError: 'story' (test_user_code.py:")
    assert told(ValueError("one\ntwo")).startswith("task x: ValueError: one (")
    assert told(ZeroDivisionError()).startswith("task x: ZeroDivisionError (")
    assert told(type("Own", (BaseException,), {})("x")).startswith("task x: Own: x (")
    assert told(UserError("a.jsonl: row 3 is bad")) == "task x: a.jsonl: row 3 is bad"
    with pytest.raises(UserError, match=r"JSONDecodeError.*\(test_user_code.py:"):
        with user_code("task x"):
            json.loads("{")  # raised in a library: the user's own line counts


@pytest.mark.parametrize(
    "error", [Stopped(), MemoryError(), KeyboardInterrupt(), OSError(errno.ENOSPC, "full", "f")]
)
def test_what_is_nobodys_mistake_passes(error):
    with pytest.raises(type(error)), user_code("task x"):
        raise error


def with_step(step, **fields):
    name = new_name()
    data = fields or {"text": ["a red cat", "a cat"]}

    def dataset(split, shuffle_files=False, seed=None):
        return tf.data.Dataset.from_tensor_slices(data)

    source = seqio.FunctionDataSource(dataset, ["train"])
    tasks.register(name, source, "text", preprocessors=[step] if step else [])
    return name


@seqio.map_over_dataset
def of_a_missing_field(row):
    return {"text": row["story"]}


def in_python(dataset):
    def fail(text):
        raise KeyError(text.decode())

    return dataset.map(lambda row: {"text": tf.numpy_function(fail, [row["text"]], tf.string)})


def in_a_loop(dataset):
    def fail(text):
        return next(iter([]))  # StopIteration ends no dataset early

    return dataset.map(lambda row: {"text": tf.numpy_function(fail, [row["text"]], tf.string)})


def in_tensorflow(dataset):
    return dataset.map(
        lambda row: {"text": tf.strings.as_string(tf.strings.to_number(row["text"]))}
    )


def not_a_dataset(dataset):
    return None


rekeyed = functools.partial(seqio.preprocessors.rekey, key_map={"text": "story"})


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (of_a_missing_field, "preprocessor of_a_missing_field (given text): KeyError: 'story' ("),
        (rekeyed, "preprocessor rekey (given text): KeyError: 'story'"),
        (in_python, "KeyError: 'a red cat' (test_user_code.py:"),
        (in_a_loop, "StopIteration"),
        (in_tensorflow, "could not correctly convert string: a red cat"),
        (not_a_dataset, "preprocessor write_examples (given NoneType): "),
    ],
)  # fmt: skip
def test_a_preprocessor_that_fails_is_named_with_its_task(tmp_path, step, expected):
    assert expected in refused(with_step(step), tmp_path)


def test_a_source_without_the_field_says_which_it_has(tmp_path):
    line = refused(with_step(None, story=["a cat"], title=["cat"]), tmp_path)
    assert "preprocessor write_examples (given story, title): KeyError: 'text'" in line


def test_a_function_of_documents_a_filter_and_a_place_that_fail(tmp_path):
    def documents(split):
        yield "a cat"
        raise ConnectionError("the library is closed")

    name = new_name()
    tasks.text_function(name, documents)
    assert "ConnectionError: the library is closed (test_user_code.py:" in refused(name, tmp_path)
    artifacts.write_jsonl(tmp_path / "a.jsonl", [{"id": "r", "text": "a cat"}])
    name = new_name()
    tasks.text(name, tmp_path / "a.jsonl", keep=lambda row: row["language"] == "en")
    assert "KeyError: 'language' (test_user_code.py:" in refused(name, tmp_path)
    name = new_name()
    tasks.text(name, lambda: tmp_path / {}["corpus"])
    assert "KeyError: 'corpus' (test_user_code.py:" in refused(name, tmp_path)
    name = new_name()
    tasks.text_function(name, lambda split: [1, 2])
    assert "Unsupported object type int" in refused(name, tmp_path)


def test_a_task_without_a_train_split(tmp_path):
    name = new_name()
    tasks.text_function(name, lambda split: ["a cat"], splits=("validation", "test"))
    assert "has no split train, but validation, test" in refused(name, tmp_path)


def test_what_cannot_run_is_told_before_the_others_are_prepared(tmp_path):
    good, mixed = new_name(), new_name()
    tasks.text_function(good, lambda split: ["a cat"])
    tasks.mixture(mixed, {good: 1, with_step(of_a_missing_field): 1})
    with pytest.raises(UserError, match="preprocessor of_a_missing_field"):
        prepare(
            mixed, vocab=VOCAB, tokenizer=TOKENIZER, out=tmp_path / "rows",
            config=PrepareConfig(length=32), quiet=True,
        )  # fmt: skip
    assert not (tmp_path / "rows").exists()


def test_what_a_tfds_data_set_lacks(tmp_path, tiny_stories):
    # TFDS knows a name once a process, and another test has built that one
    source = tiny_stories.replace("TinyStories", "FewStories")
    (tmp_path / "few_stories.py").write_text(source)
    module = import_module(str(tmp_path / "few_stories.py"))
    module.TEXTS = ["a red cat"] * 20
    module.FewStories(data_dir=str(tmp_path / "tfds")).download_and_prepare()

    def stories(dataset="few_stories:1.0.0", **options):
        name = new_name()
        tasks.text_tfds(name, dataset, data_dir=tmp_path / "tfds", **options)
        return name

    for dataset in ("few_stories", "few_stories:", "few_stories/config"):
        with pytest.raises(UserError, match="names no version"):
            stories(dataset)
    line = refused(stories(), tmp_path)
    assert "preprocessor write_examples (given story): KeyError: 'text'" in line
    assert "is not on disk" in refused(stories("few_stories:2.0.0", field="story"), tmp_path)
    splits = {"train": "trian[:50%]"}
    assert "trian" in refused(stories(field="story", splits=splits), tmp_path)
    splits = {"test": "train"}
    assert "no split train, but test" in refused(stories(field="story", splits=splits), tmp_path)
    name = stories(field="story")
    assert tasks.find(name).num_input_examples("train") == 20


def test_what_failed_leaves_nothing_that_counts_as_made(tmp_path):
    def documents(split):
        yield from ["a red cat"] * 5
        if split == "train":  # made after the other split, of which more is wanted first
            raise KeyError("later")

    name = new_name()
    tasks.text_function(name, documents)
    with pytest.raises(UserError, match=f"task {name}, split train: KeyError: 'later'"):
        prepare(
            name, vocab=VOCAB, tokenizer=TOKENIZER, out=tmp_path,
            config=PrepareConfig(length=32), quiet=True,
        )  # fmt: skip
    made = {path.parent.name for path in tmp_path.rglob(artifacts.MANIFEST)}
    assert made == {"validation"} and not list(tmp_path.glob("*.mixture.json"))
    assert not list(tmp_path.rglob("train/*.arrayrecord"))
