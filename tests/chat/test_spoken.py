"""The whole chain with models that are known."""

import numpy as np
import pytest

from speechlm_jax.audio.mel import MelConfig, wav_to_mel
from speechlm_jax.chat.dialogue import Chat
from speechlm_jax.chat.spoken import wav_to_reply
from speechlm_jax.errors import UserError

MEL = MelConfig()
RATE = MEL.sample_rate


def tone(hz, seconds=0.4):
    return 0.3 * np.sin(2 * np.pi * hz * np.arange(int(RATE * seconds)) / RATE).astype(np.float32)


def loudest(mel):
    """The loudest mel bin, as a code of each 8 frames."""
    return (mel[: len(mel) // 8 * 8].reshape(-1, 8, 80).mean(1).argmax(-1) // 5).astype(np.int32)


def reply_to(wav, writer, scripted, codes, **given):
    ids = writer.vocab.codes_to_ids(np.array(codes, int)).tolist()
    first, *rest = writer.tokenizer.encode("it is rome")
    model = scripted([[first]], [rest], [ids])
    chat = Chat(model, writer)
    made = wav_to_reply(
        wav, mel_to_codes=loudest, chat=chat, mel=MEL, mode="text_guided",
        codes_to_wav=lambda said: tone(440, 0.08 * len(said)), **given,
    )  # fmt: skip
    return made, model


def test_the_question_is_heard_and_the_reply_is_spoken(writer, scripted):
    reply, model = reply_to(tone(900), writer, scripted, [1, 2, 3])
    heard = loudest(wav_to_mel(tone(900), MEL))
    assert list(model.asked[0][0].prompt[2:-2]) == writer.vocab.codes_to_ids(heard).tolist()
    assert reply.text == "it is rome"
    np.testing.assert_array_equal(reply.codes, [1, 2, 3])
    assert len(reply.wav) == 3 * 8 * MEL.hop_length and np.abs(reply.wav).max() <= 1
    spectrum = np.abs(np.fft.rfft(reply.wav))
    assert abs(np.argmax(spectrum) * RATE / len(reply.wav) - 440) < 30
    again, _ = reply_to(tone(900), writer, scripted, [1, 2, 3])
    np.testing.assert_array_equal(reply.wav, again.wav)


def test_a_model_that_says_nothing_is_silent(writer, scripted):
    reply, _ = reply_to(tone(900), writer, scripted, [])
    assert reply.text == "it is rome" and len(reply.wav) == 0 == len(reply.codes)


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.05])
def test_a_question_without_a_code_is_refused(writer, scripted, seconds):
    with pytest.raises(UserError, match="longer recording"):
        reply_to(tone(900, seconds), writer, scripted, [1])
