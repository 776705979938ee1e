"""Sizes of a quickstart: the settings of the whole chain for each."""

import dataclasses
from typing import Literal

from speechlm_jax.audio.mel_config import MelConfig
from speechlm_jax.data.clips import BucketConfig
from speechlm_jax.interleave.build import InterleaveConfig
from speechlm_jax.nn.language_model import LanguageModelConfig
from speechlm_jax.nn.transformer import ExecutionConfig, TransformerConfig
from speechlm_jax.speech_decoder.flow import FlowConfig
from speechlm_jax.speech_tokenizer.encoder import EncoderConfig
from speechlm_jax.speech_tokenizer.model import SpeechTokenizerConfig
from speechlm_jax.speech_tokenizer.quantizer import QuantizerConfig
from speechlm_jax.text_to_token.synthesize import SynthesisConfig
from speechlm_jax.train.loop import TrainConfig
from speechlm_jax.train.optimizer import OptimizerConfig

Size = Literal["full", "micro"]


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """Numbers of clips and documents.

    Attributes:
      train_clips: clips of the TTS corpus; a fraction `string_ratio` of them are strings of random
        words, the others sentences that pair people and values at random.
      passages: further clips of the TTS corpus: consecutive sentences cut anywhere, with a Poisson
        number of words of mean `passage_words`, like the spans that the text-to-token model speaks.
      eval_clips: held-out clips of each kind.
      question_voices: held-out voices that ask about every fact.
      dialogue_voices: training voices that ask about each fact of the dialogues.
      stories: stories told by held-out voices.
      documents: documents to be interleaved, of about `document_words` words.
      text_documents: documents that stay text, about the facts that occur only in text.
    """

    train_clips: int = 12_000
    string_ratio: float = 0.667
    passages: int = 3_000
    passage_words: float = 10.0
    eval_clips: int = 240
    question_voices: int = 3
    dialogue_voices: int = 8
    stories: int = 100
    documents: int = 3000
    text_documents: int = 1200
    document_words: int = 100


@dataclasses.dataclass(frozen=True)
class TrainingSize:
    """Length, batch size and optimizer settings of one training."""

    steps: int
    batch_size: int
    peak: float = 3e-3
    final: float = 5e-5
    warmup_steps: int = 80
    optimizer: Literal["adamw", "muon"] = "adamw"
    schedule: Literal["cosine", "wsd"] = "cosine"
    decay_fraction: float = 0.2

    def config(self, *, seed: int, log: int = 20) -> TrainConfig:
        """Returns the config of the training loop; `log` is the most steps between log lines."""
        optimizer = OptimizerConfig(
            name=self.optimizer,
            peak=self.peak,
            final=self.final,
            warmup_steps=min(self.warmup_steps, self.steps // 4),
            schedule=self.schedule,
            decay_fraction=self.decay_fraction,
            b2=0.98,
            weight_decay=0.05,
            decay_head=False,
        )
        return TrainConfig(
            total_steps=self.steps,
            optimizer=optimizer,
            seed=seed,
            log_every_steps=max(1, min(log, self.steps // 10)),  # a curve of at least ten points
            save_every_steps=max(1, min(200, self.steps // 4)),
        )


@dataclasses.dataclass(frozen=True)
class QuickstartConfig:
    """Settings of the whole chain.

    Attributes:
      mel: of the mel frames that the tokenizer reads and the speech decoder makes. Their level does
        not tell how loud a recording is: a small tokenizer that has heard one loudness changes 86%
        of its codes at -12 dB (docs/log.md).
    """

    corpus: CorpusConfig
    mel: MelConfig
    buckets: BucketConfig
    tokenizer: SpeechTokenizerConfig
    tokenizer_training: TrainingSize
    row_length: int
    text_to_token: LanguageModelConfig
    text_to_token_training: TrainingSize
    synthesis: SynthesisConfig
    interleave: InterleaveConfig
    lm: LanguageModelConfig
    lm_training: TrainingSize
    speech_decoder: FlowConfig
    speech_decoder_training: TrainingSize
    chat_training: TrainingSize


def make_config(size: Size) -> QuickstartConfig:
    """Returns the config of a size: `full` makes the claims of the README, `micro` makes none."""
    return FULL if size == "full" else MICRO


def _transformer(layers: int, embed: int, heads: int) -> TransformerConfig:
    mlp = embed * 8 // 3 // 16 * 16
    execution = ExecutionConfig(unroll=layers)
    return TransformerConfig(layers, embed, heads, heads, embed // heads, mlp, execution=execution)


FULL = QuickstartConfig(
    corpus=CorpusConfig(),
    mel=MelConfig(level="peak"),
    buckets=BucketConfig(batch_size=16, edges=(192, 240, 384)),
    tokenizer=SpeechTokenizerConfig(
        text_size=0,
        encoder=EncoderConfig(rope_theta=10_000.0),
        quantizer=QuantizerConfig(start_step=300),
    ),
    tokenizer_training=TrainingSize(steps=800, batch_size=16, optimizer="muon"),
    row_length=256,
    text_to_token=LanguageModelConfig(0, _transformer(4, 128, 4)),
    text_to_token_training=TrainingSize(steps=2000, batch_size=4, optimizer="muon"),
    synthesis=SynthesisConfig(),
    interleave=InterleaveConfig(),
    lm=LanguageModelConfig(0, _transformer(4, 128, 4)),
    # The model learns to understand spoken questions late and suddenly (docs/log.md): the learning
    # rate stays high until then, and Muon and small batches make it happen earlier.
    lm_training=TrainingSize(steps=3600, batch_size=4, optimizer="muon", schedule="wsd"),
    speech_decoder=FlowConfig(0, 0),
    speech_decoder_training=TrainingSize(steps=1000, batch_size=16, peak=2e-3, optimizer="muon"),
    chat_training=TrainingSize(steps=400, batch_size=8, peak=1e-3, final=0.0),
)

_SMALL = _transformer(1, 32, 2)
MICRO = dataclasses.replace(
    FULL,
    corpus=CorpusConfig(
        train_clips=160,
        passages=20,
        eval_clips=12,
        question_voices=1,
        dialogue_voices=1,
        stories=6,
        documents=40,
        text_documents=20,
    ),
    buckets=BucketConfig(batch_size=8, edges=(416,)),  # each length is a program to compile
    tokenizer=SpeechTokenizerConfig(
        text_size=0,
        encoder=EncoderConfig(
            layers=1, embed=32, heads=2, mlp=64, latent_dim=16, rope_theta=10_000.0
        ),
        quantizer=QuantizerConfig(codebook_size=256, codebook_dim=16, start_step=4),
        post_vq_layers=1,
        decoder_layers=1,
    ),
    tokenizer_training=TrainingSize(steps=12, batch_size=8),
    row_length=256,
    text_to_token=LanguageModelConfig(0, _SMALL),
    text_to_token_training=TrainingSize(steps=12, batch_size=4),
    lm=LanguageModelConfig(0, _SMALL),
    lm_training=TrainingSize(steps=12, batch_size=4),
    speech_decoder=FlowConfig(
        0, 0, embed=32, heads=2, mlp=64, encoder_layers=1, estimator_layers=1
    ),
    speech_decoder_training=TrainingSize(steps=12, batch_size=8),
    chat_training=TrainingSize(steps=8, batch_size=4),
)
