"""A mixture's rates are SeqIO's own, are known before any work, and make sense."""

import functools
import itertools
import math
import warnings

import pytest

with warnings.catch_warnings():  # TensorFlow's own deprecations are not ours to mend
    warnings.simplefilter("ignore")
    import seqio

    from speechlm_jax.data import tasks
    from speechlm_jax.data.prepare import PrepareConfig, prepare

from speechlm_jax import artifacts
from speechlm_jax.data.mixture import read_mixture
from speechlm_jax.data.rates import task_rates, to_rates
from speechlm_jax.errors import UserError
from speechlm_jax.text import TextTokenizer
from speechlm_jax.vocab import Vocab

pytestmark = pytest.mark.filterwarnings("ignore")

TOKENIZER = TextTokenizer.train(["a red cat"], kind="word")
VOCAB = Vocab(TOKENIZER.size, 16, 12.5, TOKENIZER.fingerprint, "tokenizer-a")
numbers = itertools.count()


def new_name() -> str:
    return f"rates_{next(numbers)}"


def new_task(count=3) -> str:
    name = new_name()
    tasks.text_function(name, lambda split: ["a red cat"] * count)
    return name


def new_mixture(members) -> seqio.Mixture:
    """As SeqIO registers it, without our checks."""
    return seqio.MixtureRegistry.add(new_name(), list(members.items()))


def prepared(name, out) -> dict[str, float]:
    config = PrepareConfig(length=32)
    path = prepare(name, vocab=VOCAB, tokenizer=TOKENIZER, out=out, config=config, quiet=True)
    return read_mixture(path).rates


def test_numbers_and_functions_are_rates(tmp_path):
    small, large, fixed, asked = new_task(3), new_task(12), new_task(), new_task()
    count = seqio.mixing_rate_num_examples
    half = functools.partial(count, scale=0.5, maximum=5)
    members = {small: count, large: half, fixed: 2, asked: lambda task: len(task.name) / 10}
    name = new_name()
    made = tasks.mixture(name, members)
    rates = prepared(name, tmp_path)
    expected = {small: 3.0, large: 5.0, fixed: 2.0, asked: len(asked) / 10}
    assert rates == pytest.approx(expected)
    assert rates == pytest.approx({task.name: made.get_rate(task) for task in made.tasks})


def test_a_mixture_in_a_mixture_deals_its_rate_out_as_in_seqio():
    a, b, c = new_task(), new_task(), new_task()
    inner = new_mixture({a: 1, b: 3})
    outer = new_mixture({inner.name: 2.0, a: 0.25, c: lambda task: 1.5})
    top = new_mixture({outer.name: 7, inner.name: 1})
    for mixture in (inner, outer, top):
        theirs = {task.name: mixture.get_rate(task) for task in mixture.tasks}
        assert task_rates(mixture) == pytest.approx(theirs)
        assert list(task_rates(mixture)) == sorted(theirs)
    assert task_rates(tasks.find(a)) == {a: 1.0}
    # Of a mixture inside, SeqIO wants a number; a function may say it here.
    assert task_rates(new_mixture({inner.name: lambda mixture: 4.0})) == {a: 1.0, b: 3.0}


BAD = [math.nan, math.inf, -0.5, "a lot", None, 10**5000]


@pytest.mark.parametrize("rate", BAD, ids=range(len(BAD)))
def test_a_rate_that_is_no_share_is_refused_before_any_work(tmp_path, rate):
    good, bad, above = new_task(), new_task(), new_name()
    with pytest.raises(UserError, match=f"mixture m: the rate of {bad} is .*finite"):
        to_rates("m", {good: 1, bad: rate})
    inner = new_mixture({good: 1, bad: rate})
    by_function = new_mixture({good: 1, bad: lambda task: rate})
    seqio.MixtureRegistry.add(above, [(inner.name, 1.0), (good, 5.0)])
    for name in (inner.name, by_function.name, above):
        with pytest.raises(UserError, match=f"the rate of {bad} is"):
            prepared(name, tmp_path)
    assert not any(tmp_path.iterdir())


def test_our_own_registration_refuses_numbers_and_leaves_functions_for_later():
    good, bad = new_task(), new_task()
    with pytest.raises(UserError, match="is nan"):
        tasks.mixture(new_name(), {good: 1.0, bad: math.nan})
    with pytest.raises(UserError, match="its rates sum to 0"):
        tasks.mixture(new_name(), {good: 0, bad: 0.0})
    with pytest.raises(UserError, match="its rates sum to 0"):
        tasks.mixture(new_name(), {})
    tasks.mixture(new_name(), {good: 0, bad: lambda task: 1 / 0})


def test_a_function_that_fails_names_mixture_task_and_line(tmp_path):
    name = new_task()

    def uncounted(task):
        return {}["no such count"]

    mixture = new_mixture({name: uncounted})
    with pytest.raises(UserError) as error:
        prepared(mixture.name, tmp_path)
    said = f"mixture {mixture.name}: the rate of {name}: KeyError: 'no such count' (test_rates.py:"
    assert str(error.value).startswith(said)
    assert not any(tmp_path.iterdir())


def test_all_rates_zero_and_a_task_that_is_in_no_registry(tmp_path):
    zero = new_mixture({new_task(): 0, new_task(): lambda task: 0.0})
    with pytest.raises(UserError, match=f"mixture {zero.name}: its rates sum to 0"):
        prepared(zero.name, tmp_path)
    task = tasks.find(new_task())
    seqio.TaskRegistry.remove(task.name)
    loose = seqio.MixtureRegistry.add(new_name(), [(task, 1.0)])
    with pytest.raises(UserError, match=f"{task.name} is in no registry"):
        prepared(loose.name, tmp_path)


def test_a_task_of_rate_zero_is_not_prepared(tmp_path, caplog):
    used, gone = new_task(), new_name()
    tasks.text(gone, tmp_path / "no_such_file.txt")
    name = new_mixture({used: 1, gone: 0}).name
    with caplog.at_level("INFO", "speechlm"):
        assert prepared(name, tmp_path / "rows") == {used: 1.0}
    assert f"{gone} has rate 0 and is left out" in caplog.text


@pytest.mark.parametrize("name", ["a task", "a/b", "../a", "", "a-b", "a\n"])
def test_names_that_are_no_names_of_files_are_refused(name):
    for register in (
        lambda: tasks.text(name, "x.txt"),
        lambda: tasks.mixture(name, {new_task(): 1}),
        lambda: tasks.register(name, tasks.find(new_task()).source, "text"),
    ):
        with pytest.raises(UserError, match="letters, digits"):
            register()


def test_a_format_that_is_none_is_refused():
    with pytest.raises(UserError, match="format 'spech' is none of text, speech"):
        tasks.register.__wrapped__(new_name(), tasks.find(new_task()).source, "spech")


def test_a_name_is_given_once_to_tasks_and_mixtures():
    task, name = new_task(), new_name()
    tasks.mixture(name, {task: 1})
    for register in (
        lambda: tasks.mixture(task, {task: 1}),
        lambda: tasks.mixture(name, {task: 1}),
        lambda: tasks.text(name, "x.txt"),
    ):
        with pytest.raises(UserError, match="registered twice"):
            register()


def test_sources_know_their_examples(tmp_path):
    rows = [{"id": str(i), "text": f"a red cat {i}", "take": i % 2 == 0} for i in range(200)]
    rows[0]["split"] = "test"
    artifacts.write_jsonl(tmp_path / "a.jsonl", rows)
    tasks.use_vocab(VOCAB, TOKENIZER)
    asked = []

    def keep(row):
        asked.append(row["id"])
        return row["take"]

    task = tasks.text(new_name(), tmp_path / "a.jsonl", validation_ratio=0.3, keep=keep)
    counts = {split: task.num_input_examples(split) for split in ("train", "validation")}
    assert sum(counts.values()) == 99 and min(counts.values()) > 10
    read = len(asked)
    for split, count in counts.items():
        assert task.num_input_examples(split) == count
    assert len(asked) == read, "they were counted once"
    for split, count in counts.items():
        dataset = task.source.get_dataset(split, shuffle=False)
        assert len(list(dataset.as_numpy_iterator())) == count
    artifacts.write_jsonl(tmp_path / "a.jsonl", rows[:50])
    assert task.num_input_examples("train") < counts["train"]


def test_a_source_that_cannot_count_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("a red cat\n")
    name = new_name()
    source = seqio.TextLineDataSource({"train": str(tmp_path / "a.txt")})
    features = tasks.output_features()
    seqio.TaskRegistry.add(name, source=source, output_features=features, preprocessors=[])
    for rate in (seqio.mixing_rate_num_examples, lambda task: None + 1):  # pyright: ignore
        mixture = new_mixture({name: rate})
        told = f"the rate of {name}: its source does not say how many examples it has"
        with pytest.raises(UserError, match=told):
            task_rates(mixture)
    with pytest.raises(UserError, match="TypeError"):
        task_rates(new_mixture({new_task(): lambda task: None + 1}))  # pyright: ignore
