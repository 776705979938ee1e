"""Suite for a speech decoder: audio made from codes is read back; its level and clipping."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from speechlm_jax.audio.mel import MelConfig, wav_to_mel
from speechlm_jax.audio.wav import level_db
from speechlm_jax.evals.items import Item
from speechlm_jax.evals.suites.clips import readings
from speechlm_jax.evals.wer import wer_items
from speechlm_jax.speech_decoder.synthesis import SpeechDecoder


def decoder_items(
    rows: Sequence[dict[str, Any]],
    wavs: Sequence[np.ndarray],
    decoder: SpeechDecoder,
    mels_to_text: Callable[[Sequence[np.ndarray]], Sequence[str]],
    *,
    mel: MelConfig,
    seed: int,
) -> list[Item]:
    """Scores audio made from codes: WER as read by the tokenizer's own ASR, level and clipping.

    `speech_decoder/level_difference_db` is the mean level of the audio minus that of its source.
    """
    codes = [np.array(row["codes"], np.int32) for row in rows]
    made = decoder.codes_to_wav(codes, mel=mel, seed=seed)
    heard = mels_to_text([wav_to_mel(wav, mel) for wav in made])
    items = wer_items("speech_decoder/wer", readings(rows, heard))
    for row, source, wav in zip(rows, wavs, made, strict=True):
        difference = level_db(wav) - level_db(source)
        clipped = float(np.mean(np.abs(wav) >= 1.0))
        for figure, value in (("level_difference_db", difference), ("clipped_ratio", clipped)):
            items.append(
                Item(
                    f"speech_decoder/{figure}", row["speaker"], "", "", row["text"], "", value, 1.0
                )
            )
    return items
