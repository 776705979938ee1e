"""A recorded question -> a spoken reply."""

import logging
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts
from speechlm_jax.audio.mel import wav_to_mel
from speechlm_jax.audio.wav import write_wav
from speechlm_jax.bundle.open import open_bundle
from speechlm_jax.chat.dialogue import Chat, Mode
from speechlm_jax.chat.spoken import wav_to_reply
from speechlm_jax.verbs.recordings import read_samples

_log = logging.getLogger("speechlm.chat")


def chat(
    audio: str | Path,
    *,
    run: str | Path,
    out: str | Path,
    mode: Mode = "text_guided",
    seed: int = 0,
) -> dict[str, Any]:
    """Answers a spoken question (GLM-4-Voice report, section 5); writes reply.wav and reply.json.

    Args:
      audio: recording of the question, in any format and at any sample rate.
      run: a bundle (see `bundle.open.open_bundle`).
      out: folder of the reply.
      mode: `text_guided` (text first, then speech) or `speech_only`.
      seed: seed of the reply's audio.

    Raises:
      UserError: the recording cannot be used, or the run lacks a chat model, a speech tokenizer or
        a speech decoder.
    """
    models, out = open_bundle(run, batch_size=1), Path(out)
    for name in ("chat", "tokenizer", "speech_decoder"):
        models.part(name)
    wav = read_samples(audio, models.mel)
    assistant = Chat(models.part_model("chat"), models.writer)
    reply = wav_to_reply(
        wav,
        mel_to_codes=lambda mel: models.reader.mels_to_codes([mel])[0],
        chat=assistant,
        codes_to_wav=lambda codes: models.speech_decoder.codes_to_wav(
            [codes], mel=models.mel, seed=seed
        )[0],
        mode=mode,
        mel=models.mel,
        seed=seed,
    )
    heard = models.read(models.reader.mels_to_codes([wav_to_mel(wav, models.mel)]))[0]
    result = {
        "mode": mode,
        "text": reply.text,
        "codes": reply.codes.tolist(),
        "read_back": models.read([reply.codes])[0] if len(reply.codes) else "",
        "question": {"audio": str(audio), "read": heard},
        "audio": None,
    }
    if len(reply.codes):
        result["audio"] = str(out / "reply.wav")
        write_wav(out / "reply.wav", reply.wav, sample_rate=models.mel.sample_rate)
    else:
        (out / "reply.wav").unlink(missing_ok=True)  # left from an earlier question
        _log.warning("the model gave no speech; only the reply's text is written")
    artifacts.write_json(out / "reply.json", result)
    return result
