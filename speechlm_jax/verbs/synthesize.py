"""Texts -> a codes folder, by the text-to-token model."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechlm_jax import config as configs
from speechlm_jax.arrays import Int, ndarray
from speechlm_jax.bundle.models import Bundle
from speechlm_jax.bundle.open import open_bundle
from speechlm_jax.codes import CODES, write_codes
from speechlm_jax.errors import UserError
from speechlm_jax.text_to_token.synthesize import SpeechRequest, SynthesisConfig
from speechlm_jax.verbs.devices import decoding_mesh
from speechlm_jax.verbs.sayable import choose_voice, sayable

_log = logging.getLogger("speechlm.synthesize")


def synthesize(
    texts: Sequence[str],
    *,
    run: str | Path,
    out: str | Path,
    voice: str | None = None,
    temperature: float = 0.5,
    seed: int = 0,
    tensor: int = 1,
) -> dict[str, Any]:
    """Turns texts into codes (paper section 2.2); writes `codes.jsonl` and `stage.json`.

    Args:
      texts: texts to speak; case and punctuation are dropped.
      run: a bundle (see `bundle.open.open_bundle`).
      out: the codes folder.
      voice: a training voice; None draws one for each text.
      temperature: sampling temperature; 0 is greedy.
      seed: seed of voices and sampling.
      tensor: see `devices.decoding_mesh`.

    Raises:
      UserError: no text gave speech, a voice or word is unknown, or a text has no words.
    """
    if temperature < 0:
        raise UserError(f"--temperature {temperature}: must be 0 (greedy) or more")
    models, out = open_bundle(run, mesh=decoding_mesh(tensor)), Path(out)
    said = [sayable(models, text) for text in texts]
    requests = [
        SpeechRequest(text, choose_voice(models.voices, voice, seed=seed + i), seed=seed + i)
        for i, text in enumerate(said)
    ]
    spoken = requests_to_codes(models, requests, temperature=temperature)
    trained = models.fingerprint("text_to_token")
    rows = [
        {"id": f"text-{i}", "text": request.text, "speaker": request.voice, "codes": codes.tolist()}
        for i, (request, codes) in enumerate(zip(requests, spoken, strict=True))
        if len(codes)
    ]
    manifest = write_codes(
        out, rows, models.codes, seed=seed, counts={"clips": len(rows)},
        inputs={"text": configs.fingerprint(said), "text_to_token": trained},
        config={"voice": voice, "temperature": temperature},
    )  # fmt: skip
    return {
        "codes": str(out / CODES),
        "clips": manifest.counts["clips"],
        "num_codes": sum(len(row["codes"]) for row in rows),
        "voices": [row["speaker"] for row in rows],
        "not_said": [r.text for r, codes in zip(requests, spoken, strict=True) if not len(codes)],
    }


def requests_to_codes(
    models: Bundle, requests: Sequence[SpeechRequest], *, temperature: float
) -> list[Int[ndarray, " frames"]]:
    """Returns the codes of each request; empty, with a warning, if the model gave no likely speech.

    Raises:
      UserError: the model gave no likely speech for any request.
    """
    model = models.make_text_to_token(SynthesisConfig(temperature=temperature))
    spoken = model.text_to_codes(requests)
    if not any(map(len, spoken)):
        raise UserError(
            f"'{requests[0].text}': the text-to-token model gave no speech of a likely length; "
            "try another --seed, or train it longer"
        )
    for request, codes in zip(requests, spoken, strict=True):
        if not len(codes):
            _log.warning("not said: '%s' (try another --seed)", request.text)
    return spoken
