"""Whatever is written into a config's field is refused in one line, or can be built."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import pytest

from speechlm_jax import config as configs
from speechlm_jax.audio.augment import AugmentConfig
from speechlm_jax.audio.mel import MelConfig
from speechlm_jax.chat.dialogue import ChatConfig
from speechlm_jax.data.clips import BucketConfig
from speechlm_jax.data.shares import PhaseSpec, fraction
from speechlm_jax.errors import UserError
from speechlm_jax.experiment.configs import (
    ClipsData,
    LanguageModelExperiment,
    RowsData,
    SpeechDecoderExperiment,
    SpeechTokenizerExperiment,
)
from speechlm_jax.interleave.build import InterleaveConfig
from speechlm_jax.lm.bench import BenchConfig
from speechlm_jax.nn.language_model import LanguageModelConfig, functional
from speechlm_jax.nn.layers import Lora
from speechlm_jax.nn.param import Functional
from speechlm_jax.nn.rotary import LongContext
from speechlm_jax.nn.transformer import TransformerConfig
from speechlm_jax.sharding import make_mesh
from speechlm_jax.speech_decoder.flow import Flow, FlowConfig
from speechlm_jax.speech_tokenizer.encoder import EncoderConfig
from speechlm_jax.speech_tokenizer.model import SpeechTokenizer, SpeechTokenizerConfig
from speechlm_jax.speech_tokenizer.quantizer import QuantizerConfig
from speechlm_jax.text_to_token.synthesize import SynthesisConfig
from speechlm_jax.train.loop import TrainConfig
from speechlm_jax.train.optimizer import make_optimizer

STACK = TransformerConfig(1, 8, 2, 1, 4, 8, lora=Lora(), long_context=LongContext())
CLIPS = ClipsData("features", buckets=BucketConfig(edges=(48,)))
TRAIN = TrainConfig(1000)
EXPERIMENTS = (
    LanguageModelExperiment(RowsData("rows"), LanguageModelConfig(16, STACK), TRAIN),
    SpeechTokenizerExperiment(
        dataclasses.replace(CLIPS, augment=AugmentConfig()),
        SpeechTokenizerConfig(
            8,
            EncoderConfig(layers=1, embed=8, heads=2, mlp=8, latent_dim=4),
            QuantizerConfig(8, 4),
            post_vq_layers=1,
            decoder_layers=1,
        ),
        TRAIN,
    ),
    SpeechDecoderExperiment(
        CLIPS,
        FlowConfig(8, 2, embed=8, heads=2, mlp=8, encoder_layers=1, estimator_layers=1),
        TRAIN,
    ),
)
OTHERS = (
    MelConfig(),
    InterleaveConfig(),
    SynthesisConfig(),
    ChatConfig(),
    BenchConfig(),
    PhaseSpec("p", {"a": fraction(0.5)}, rows=3),
)
BAD = (
    "0",
    "-1",
    "3",
    "0.5",
    "2147483648",
    "1" + 30 * "0",
    "1" + 5000 * "0",
    "1e-300",
    "NaN",
    "Infinity",
)
BAD += ("true", "null", "[]", "{}", "x", "", '"\\ud800"', "[" * 100_000)


def paths(config, prefix=""):
    """Dotted names of all fields of a config and of those in it."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        yield f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from paths(value, f"{prefix}{field.name}.")


def refused(config, path, value):
    """The changed config, or None where it was refused as it should be."""
    try:
        return configs.override(config, [f"{path}={value}"])
    except UserError as error:
        said = str(error)
        assert "\n" not in said and len(said) < 400 and path.split(".")[-1] in said, said
        return None


def build(experiment):
    """Mesh, learning rate and the model's shapes: what a config alone decides."""
    make_mesh(experiment.train.mesh)
    optimizer = make_optimizer(experiment.train.optimizer, total_steps=experiment.train.total_steps)
    float(optimizer.learning_rate(1))
    shapes_of(experiment.model, experiment.train.seed)


@functools.cache
def shapes_of(model, seed):
    """Shapes of a model's parameters."""
    init = {
        LanguageModelConfig: lambda: functional(model),
        SpeechTokenizerConfig: lambda: Functional(lambda rngs: SpeechTokenizer(model, rngs=rngs)),
        FlowConfig: lambda: Functional(lambda rngs: Flow(model, rngs=rngs)),
    }[type(model)]
    return jax.eval_shape(init().init, jax.random.key(seed))


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_bad_value_of_any_field_is_refused_or_can_be_built(experiment, every):
    """The first value that a field takes is built; behind `make test-all` every one."""
    built = set()
    for path in paths(experiment):
        for value in BAD:
            changed = refused(experiment, path, value)
            if changed is None or changed == experiment or path.startswith("data."):
                continue
            if path in built and not every:
                continue
            try:
                build(changed)
            except UserError as error:
                assert "\n" not in str(error)
            built.add(path)
    assert len(built) > 10


@pytest.mark.parametrize("config", OTHERS, ids=lambda x: type(x).__name__)
def test_a_bad_value_of_a_small_config_is_refused_or_read_back(config):
    for path in paths(config):
        for value in BAD:
            changed = refused(config, path, value)
            if changed is not None:
                data = json.loads(json.dumps(configs.to_json(changed)))
                assert configs.from_json(type(config), data) == changed


@pytest.mark.parametrize(
    ("experiment", "override", "words"),
    [
        (1, "model.encoder.block_frames=30", "encoder.block_frames: 30 is no multiple of pool"),
        (1, "model.encoder.latent_dim=5", "encoder.latent_dim: 5 is not quantizer.codebook_dim"),
        (1, "data.augment.max_joined=0", "data.augment.max_joined: 0; give 1 or more"),
        (1, "data.augment.warp_ratio=1.5", "data.augment.warp_ratio: 1.5; give 0 to 0.99"),
        (1, "data.buckets.edges=[64,48]", r"data.buckets.edges: \[64, 48\]; give numbers .* rise"),
        (1, "data.buckets.edges=[]", r"data.buckets.edges: \[\]"),
        (0, "model.transformer.kv_heads=4", "transformer.heads: 2 is no multiple of kv_heads"),
        (0, "model.transformer.head_dim=3", "model.transformer.head_dim: 3 of 3 are rotated"),
        (0, 'model.transformer.lora={"targets":["x"]}', "lora.targets.0.: 'x' is not one of 'q'"),
        (0, "model.dtype=float8", "model.dtype: 'float8' is not one of 'float32', 'bfloat16'"),
        (0, "kind=text_to_tokne", "kind: 'text_to_tokne' is not one of 'lm', 'text_to_token'"),
        (0, "eval_every_steps=0", "eval_every_steps: 0; give 1 or more"),
        (0, "train.profile_steps=[5,3]", "train.profile_steps: 5, 3"),
        (2, "data.augment={}", "data.augment: is for speech tokenizers alone"),
        (2, "model.patches_per_code=3", "mel_frames_per_code: 8 is no multiple of patches"),
    ],
)  # fmt: skip
def test_the_line_names_the_field_and_what_it_takes(experiment, override, words):
    with pytest.raises(UserError, match=words):
        configs.override(EXPERIMENTS[experiment], [override])


def test_fields_that_depend_on_each_other_change_together():
    changed = configs.override(
        EXPERIMENTS[1], ["model.encoder.latent_dim=5", "model.quantizer.codebook_dim=5"]
    )
    assert changed.model.quantizer.codebook_dim == 5


def test_what_a_config_file_gets_wrong_is_one_line(tmp_path: Path):
    path = tmp_path / "mine.py"
    for text, words in (
        ("def config(:\n", r"mine.py: SyntaxError: .*\(mine.py:1\)"),
        ("\nconfig = lambda size: size\n", r"config\(\) takes arguments.*\(mine.py:2\)"),
        ("def config():\n    exit(1)\n", "mine.py: ends the process"),
        ("import no_such_thing\n", r"mine.py: ModuleNotFoundError: .*no_such_thing.*\(mine.py:1\)"),
        ("def config():\n    return 1 / 0\n", r"mine.py: ZeroDivisionError: .*\(mine.py:2\)"),
        (
            "from speechlm_jax.nn.transformer import TransformerConfig\n"
            "def config():\n    return TransformerConfig(1, 8, 3, 2, 4, 8)\n",
            "mine.py: heads: 3 is no multiple of kv_heads, 2",
        ),
        (
            "from speechlm_jax.nn.transformer import TransformerConfig\n"
            "def config():\n    return TransformerConfig(1, 8, 2, 2, 4, 8, remat='full')\n",
            r"mine.py: TypeError: .*remat.*\(mine.py:3\)",
        ),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=words) as caught:
            configs.load(path)
        assert "\n" not in str(caught.value)
