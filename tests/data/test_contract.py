"""A task that breaks the contract is refused by its name, and SeqIO's preprocessors keep it."""

import dataclasses
import functools
import itertools
import warnings

import numpy as np
import pytest

with warnings.catch_warnings():  # TensorFlow's own deprecations are not ours to mend
    warnings.simplefilter("ignore")
    import seqio
    import tensorflow as tf

    from speechlm_jax.data import tasks
    from speechlm_jax.data.contract import check_features, known_ids, row_to_example
    from speechlm_jax.data.prepare import PrepareConfig, prepare

from speechlm_jax.data import mixture, packing
from speechlm_jax.errors import UserError
from speechlm_jax.text import TextTokenizer
from speechlm_jax.vocab import SPECIALS, Vocab

pytestmark = pytest.mark.filterwarnings("ignore")

TOKENIZER = TextTokenizer.train(["anna has a red cat and bob lives in paris"], kind="word")
VOCAB = Vocab(TOKENIZER.size, 16, 12.5, TOKENIZER.fingerprint, "tokenizer-a", voices=("anna",))
EOS, LENGTH = VOCAB["eos"], 32
IDS = tf.TensorSpec((None,), tf.int32)
STEPS = seqio.preprocessors
numbers = itertools.count()


def add(examples, *steps, features=None, **signature) -> str:
    """Registers a task of these examples, as SeqIO's own users do; gives its name."""
    name = f"contract_{next(numbers)}"

    def dataset(split, shuffle_files=False, seed=None):
        return tf.data.Dataset.from_generator(lambda: iter(examples), output_signature=signature)

    seqio.TaskRegistry.add(
        name,
        seqio.FunctionDataSource(dataset, ["train"]),
        output_features=features or tasks.output_features(),
        preprocessors=list(steps),
    )
    return name


def prepared(name, out) -> list[packing.Document]:
    """The documents of a task's rows, in their order."""
    config = PrepareConfig(length=LENGTH, shuffle_documents=1)
    path = prepare(name, vocab=VOCAB, tokenizer=TOKENIZER, out=out, config=config, quiet=True)
    shards = mixture.open_shards(path)[name]
    rows = [
        packing.Row(**shards[i] | {"loss_mask": shards[i]["loss_mask"] > 0})
        for i in range(len(shards))
    ]
    return [document for row in rows for document in packing.unpack(row)]


def refused(name, out) -> str:
    """The one line by which a task is refused; nothing is left of it."""
    with pytest.raises(UserError) as error:
        prepared(name, out)
    assert name in str(error.value) and "\n" not in str(error.value)
    assert not list(out.rglob("*.arrayrecord")) and not list(out.rglob("*.json"))
    return str(error.value)


# --- ids ---


@pytest.mark.parametrize("feature", ["inputs", "targets"])
@pytest.mark.parametrize("bad", [60_000, 2_000_000, -3, VOCAB.size, 2**31 - 1])
def test_an_id_outside_the_vocabulary_is_refused_wherever_it_stands(tmp_path, feature, bad):
    good = {"inputs": [1, 2], "targets": [3, EOS]}
    examples = [good, good | {feature: [1, bad, EOS]}]
    line = refused(add(examples, inputs=IDS, targets=IDS), tmp_path)
    assert f"split train: document 2: {feature} have id {bad};" in line
    assert f"0..{VOCAB.size - 1}" in line


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.uint64])
def test_ids_are_checked_whatever_their_width(dtype):
    known = known_ids(VOCAB)
    row = {"targets": np.array([0, EOS], dtype)}
    assert row_to_example(row, known=known, eos=EOS).targets.tolist() == [0, EOS]
    most = np.iinfo(dtype).max if dtype != np.int8 else np.iinfo(dtype).min
    if most >= VOCAB.size or most < 0:
        with pytest.raises(UserError, match=f"id {most}"):
            row_to_example({"targets": np.array([most, EOS], dtype)}, known=known, eos=EOS)


@pytest.mark.parametrize(
    "targets", [np.array([1.0, EOS]), np.zeros(0), np.array([[1, EOS]]), np.array(EOS), True, "a"]
)
def test_what_is_no_vector_of_ids_is_refused(targets):
    with pytest.raises(UserError, match="not a vector of ids"):
        row_to_example({"targets": targets}, known=known_ids(VOCAB), eos=EOS)


def test_ids_with_a_meaning_are_those_that_something_stands_for():
    known = known_ids(VOCAB)
    named = [*range(VOCAB.text_size), *(VOCAB[name] for name in SPECIALS), VOCAB.voice_id("anna")]
    codes = VOCAB.codes_to_ids(np.arange(16)).tolist()
    assert np.flatnonzero(known).tolist() == sorted({*named, *codes})
    spare, padding = VOCAB.voice_offset - 1, VOCAB.size - 1
    for bad in (spare, padding):
        with pytest.raises(UserError, match=f"targets have id {bad}, which is spare or padding"):
            row_to_example({"targets": np.array([bad, EOS])}, known=known, eos=EOS)


def test_specials_that_the_text_vocabulary_has_are_known():
    mapped = dataclasses.replace(VOCAB, mapped=(("eos", 3),))
    assert known_ids(mapped).sum() == known_ids(VOCAB).sum() - 1


# --- eos ---


def strings(*texts):
    return [{"targets": text} for text in texts]


@pytest.mark.parametrize(
    "steps",
    [
        [STEPS.tokenize, STEPS.append_eos],
        [STEPS.tokenize, STEPS.append_eos_after_trim],
        [STEPS.tokenize_and_append_eos],
        [functools.partial(STEPS.rekey, key_map={"targets": "targets", "inputs": ""}),
         STEPS.tokenize, STEPS.append_eos],
    ],
    ids=["append_eos", "after_trim", "tokenize_and_append", "empty_inputs"],
)  # fmt: skip
def test_seqios_own_preprocessors_end_documents(tmp_path, steps):
    texts = ["a red cat", "anna has paris", "bob"]
    name = add(strings(*texts), *steps, targets=tf.TensorSpec((), tf.string))
    documents = prepared(name, tmp_path)
    assert [TOKENIZER.decode(d.ids[:-1].tolist()) for d in documents] == texts
    assert all(d.ids[-1] == EOS and EOS not in d.ids[:-1] for d in documents)


def test_inputs_and_targets_get_one_eos_between_them(tmp_path):
    both = {"inputs": "a red cat", "targets": "anna"}
    text = tf.TensorSpec((), tf.string)
    name = add([both], STEPS.tokenize, STEPS.append_eos, inputs=text, targets=text)
    (document,) = prepared(name, tmp_path)
    assert document.ids.tolist() == [*TOKENIZER.encode("a red cat anna"), EOS]
    assert document.loss_mask.tolist() == [False] * 3 + [True] * 2


@pytest.mark.parametrize(
    ("targets", "message"),
    [([1, 2], "do not end in eos"), ([], "do not end in eos"), ([1, EOS, EOS], "twice")],
)
def test_a_document_that_does_not_end_in_one_eos_is_refused(tmp_path, targets, message):
    line = refused(add([{"inputs": [1], "targets": targets}], inputs=IDS, targets=IDS), tmp_path)
    assert "document 1: targets" in line and message in line


def test_a_format_and_seqios_eos_are_refused_and_the_format_alone_ends_once(tmp_path):
    text = tf.TensorSpec((), tf.string)
    write = functools.partial(tasks.write_examples, format="text")
    twice = add([{"text": "a cat"}], write, STEPS.append_eos, text=text)
    assert "twice" in refused(twice, tmp_path)
    (document,) = prepared(add([{"text": "a cat"}], write, text=text), tmp_path)
    assert document.ids.tolist() == [*TOKENIZER.encode("a cat"), EOS]


# --- features ---


def feature(vocabulary, **fields):
    return {"targets": seqio.Feature(vocabulary, **fields)}


OURS = tasks.SpeechTextVocabulary()
FOREIGN = {
    "bytes": (feature(seqio.ByteVocabulary()), "'targets' has a ByteVocabulary"),
    "pass": (feature(seqio.PassThroughVocabulary(size=VOCAB.size)), "a PassThroughVocabulary"),
    "pieces": (feature(seqio.SentencePieceVocabulary("x.model")), "a SentencePieceVocabulary"),
    "continuous": ({"targets": seqio.ContinuousFeature()}, "a PassThroughVocabulary"),
    "inputs": (
        tasks.output_features() | {"inputs": seqio.Feature(seqio.ByteVocabulary())},
        "'inputs' has a ByteVocabulary",
    ),
    "other name": (tasks.output_features() | feature(OURS) | {"labels": 0}, "feature 'labels'"),
    "none": ({"inputs": tasks.output_features()["inputs"]}, "no output feature 'targets'"),
    "float": (feature(OURS, dtype=tf.float32), "is float32 of rank 1"),
    "rank": (feature(OURS, rank=2), "is int32 of rank 2"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_features_are_refused_before_anything_is_read(tmp_path, case):
    features, message = FOREIGN[case]
    name = f"foreign_{next(numbers)}"

    class Untouched(seqio.FunctionDataSource):
        @property
        def splits(self):
            raise AssertionError("the data was touched")

    source = Untouched(lambda split, shuffle_files: None, ["train"])
    seqio.TaskRegistry.add(name, source, output_features=features, preprocessors=[])
    line = refused(name, tmp_path)
    assert message in line and "tasks.output_features()" in line


def test_features_of_ours_pass_in_part_and_with_another_add_eos():
    known = tasks.output_features()
    check_features(known)
    check_features({"targets": dataclasses.replace(known["targets"], add_eos=False)})


@pytest.mark.parametrize(
    ("values", "spec", "message"),
    [
        ([1, EOS], tf.TensorSpec((None,), tf.int64), "Got int64"),
        ([1.0, 2.0], tf.TensorSpec((None,), tf.float32), "Got float32"),
        ([[1, EOS]], tf.TensorSpec((None, None), tf.int32), "Got 2, expected 1"),
        ("a cat", tf.TensorSpec((), tf.string), "Got string"),
    ],
)
def test_data_that_is_not_what_the_features_say_is_refused(tmp_path, values, spec, message):
    line = refused(add([{"targets": values}], targets=spec), tmp_path)
    assert message in line and "'targets'" in line
    assert "feature after preprocessing: targets" in refused(add([{"x": [1]}], x=IDS), tmp_path)


def test_targets_alone_will_do(tmp_path):
    targets = {"targets": tasks.output_features()["targets"]}
    name = add([{"targets": [1, EOS]}], features=targets, targets=IDS)
    assert [d.ids.tolist() for d in prepared(name, tmp_path)] == [[1, EOS]]


# --- the length of a row ---


def test_preprocessors_get_the_length_of_a_row(tmp_path):
    seen = []

    def keep_short(dataset, sequence_length):
        seen.append(sequence_length)
        return dataset.filter(lambda row: tf.size(row["targets"]) <= sequence_length["targets"])

    examples = [{"targets": [1] * 40 + [EOS]}, {"targets": [2, EOS]}]
    assert len(prepared(add(examples, keep_short, targets=IDS), tmp_path)) == 1
    assert seen and all(given == {"inputs": LENGTH, "targets": LENGTH} for given in seen)


def test_nothing_is_trimmed_but_by_a_preprocessor_that_trims(tmp_path):
    long = [{"targets": list(range(1, 9)) * 10}]
    whole = prepared(add([{"targets": long[0]["targets"] + [EOS]}], targets=IDS), tmp_path)
    assert np.concatenate([d.ids for d in whole]).tolist() == [*long[0]["targets"], EOS]
    (cut,) = prepared(add(long, STEPS.append_eos_after_trim, targets=IDS), tmp_path)
    assert cut.ids.tolist() == [*long[0]["targets"][: LENGTH - 1], EOS]
    sides = [{"inputs": list(range(1, 9)) * 5, "targets": [1, EOS]}]
    left = functools.partial(STEPS.truncate_inputs_left, sequence_length={"inputs": 4})
    (cut,) = prepared(add(sides, left, inputs=IDS, targets=IDS), tmp_path)
    assert cut.ids.tolist() == [5, 6, 7, 8, 1, EOS]


def test_a_preprocessor_that_draws_gives_the_same_rows_again(tmp_path):
    @seqio.map_over_dataset(num_seeds=1)
    def drawn(row, seed):
        ids = tf.random.stateless_uniform([20], seed, 1, VOCAB.text_size, tf.int32)
        return row | {"targets": tf.concat([ids, [EOS]], 0)}

    name = add([{"targets": [0]}] * 5, drawn, targets=IDS)
    first, again = (prepared(name, tmp_path / out) for out in "ab")
    assert [d.ids.tolist() for d in first] == [d.ids.tolist() for d in again]
    assert len({tuple(d.ids) for d in first}) == 5
