"""Speech tokenizer on real digits at 12.5 Hz, tested on a speaker that it never heard.

Paper: GLM-4-Voice report (arXiv 2412.02612) section 3.1, as used by Zeng et al. (arXiv 2411.17607)
  section 2.1: a speech recognizer with a vector quantizer in its middle; here 0.7M parameters.
Data: Free Spoken Digit Dataset, 5 speakers x 500 single digits, 8 kHz; trains on 4 x 450 of them.
Command: python benchmarks/digits.py   (features, five trainings, five scores; runs/digits)
  One training, once the features are there: speechlm train configs/speech_tokenizer_digits.py
Machine: two CPU cores, 2 GiB.
Time: per speaker, run alone, 4 minutes wall and 7 CPU (yweweler; the others not timed since).
Expected: 83% mean word accuracy (theo 96%, yweweler 88, jackson 83, nicolas 76, george 71).
"""

from speechlm_jax.audio.augment import AugmentConfig
from speechlm_jax.audio.mel import MelConfig
from speechlm_jax.data.clips import BucketConfig
from speechlm_jax.experiment.configs import ClipsData, SpeechTokenizerExperiment
from speechlm_jax.speech_tokenizer.encoder import EncoderConfig
from speechlm_jax.speech_tokenizer.model import SpeechTokenizerConfig
from speechlm_jax.speech_tokenizer.quantizer import QuantizerConfig
from speechlm_jax.train.loop import TrainConfig
from speechlm_jax.train.optimizer import OptimizerConfig

# The recordings have no content above 4 kHz; 40 bins up to there are as wide as Whisper's 80.
MEL = MelConfig(num_mels=40, f_max=4000.0)

# Four speakers are few, so clips are varied enough to cover how a fifth may sound. Digits last
# 0.35 s with one speaker and 0.5 s with another, are cut more or less tightly, and differ by 20 dB.
AUGMENT = AugmentConfig(
    max_joined=3,
    max_gap_frames=8,
    trim_frames=6,
    warp_ratio=0.2,
    stretch_ratio=0.4,
    gain_db=20.0,
    colour_db=10.0,
    noise_db=40.0,
    num_masks=1,
    mask_mels=8,
    mask_frames=8,
)


def config() -> SpeechTokenizerExperiment:
    """Returns the experiment without `theo`; benchmarks/digits.py leaves each out in turn."""
    return SpeechTokenizerExperiment(
        data=ClipsData(
            features="runs/digits/features",
            text_vocab="runs/digits/text.model",
            not_speakers=("theo",),
            buckets=BucketConfig(batch_size=32, edges=(128,)),
            augment=AUGMENT,
        ),
        model=SpeechTokenizerConfig(
            text_size=0,
            encoder=EncoderConfig(
                num_mels=MEL.num_mels, layers=3, embed=96, heads=4, mlp=256, rope_theta=10_000.0
            ),
            quantizer=QuantizerConfig(start_step=300),
            post_vq_layers=1,
            decoder_layers=1,
        ),
        train=TrainConfig(
            total_steps=2000,
            optimizer=OptimizerConfig(
                name="muon",
                peak=3e-3,
                final=5e-5,
                warmup_steps=80,
                b2=0.98,
                weight_decay=0.05,
                decay_head=False,
            ),
            log_every_steps=50,
            save_every_steps=500,
        ),
    )
