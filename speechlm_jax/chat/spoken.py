"""Wav -> reply wav: the whole chain, with its models passed as functions."""

import dataclasses
from collections.abc import Callable

import numpy as np

from speechlm_jax.arrays import Float, Integer, ndarray
from speechlm_jax.audio.mel import WHISPER, MelConfig, wav_to_mel
from speechlm_jax.chat.dialogue import Chat, Mode
from speechlm_jax.errors import UserError

MelToCodes = Callable[[Float[ndarray, "mel_frames mels"]], Integer[ndarray, " frames"]]
CodesToWav = Callable[[Integer[ndarray, " frames"]], Float[ndarray, " samples"]]


@dataclasses.dataclass(frozen=True, eq=False)
class SpokenReply:
    """A reply as `text` (empty in `speech_only` mode), codes and samples.

    `codes` and `wav` are empty if the model said nothing.
    """

    text: str
    codes: Integer[ndarray, " frames"]
    wav: Float[ndarray, " samples"]


def wav_to_reply(
    wav: Float[ndarray, " samples"],
    *,
    mel_to_codes: MelToCodes,
    chat: Chat,
    codes_to_wav: CodesToWav,
    mode: Mode = "text_guided",
    mel: MelConfig = WHISPER,
    seed: int = 0,
) -> SpokenReply:
    """Answers a spoken question (GLM-4-Voice report, figure 1: tokenizer, model, decoder).

    Args:
      wav: samples, float32 in [-1, 1] at `mel.sample_rate`; the reply has the sample rate of
        `codes_to_wav`.
      mel_to_codes, codes_to_wav: the speech tokenizer and the speech decoder for one clip.

    Raises:
      UserError: the question is too short for a single code.
    """
    shortest = max(mel.hop_length, mel.n_fft // 2 + 1)
    heard = mel_to_codes(wav_to_mel(wav, mel)) if len(wav) >= shortest else np.zeros(0, np.int32)
    if not len(heard):
        seconds = len(wav) / mel.sample_rate
        raise UserError(f"the question: {seconds:.3f} s hold no code; give a longer recording")
    reply = chat.reply([heard], mode=mode, seed=seed)[0]
    if not len(reply.codes):
        return SpokenReply(reply.text, reply.codes, np.zeros(0, np.float32))
    return SpokenReply(reply.text, reply.codes, codes_to_wav(reply.codes))
