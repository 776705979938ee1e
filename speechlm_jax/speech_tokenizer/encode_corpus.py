"""A feature folder -> a codes folder: what the tokenizer hears in every clip."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.audio.recordings import Features
from speechlm_jax.codes import KIND, CodesIdentity, write_codes
from speechlm_jax.speech_tokenizer.reading import Reader

CLIPS_PER_CALL = 512


def features_to_codes(
    features: Features,
    reader: Reader,
    out: str | Path,
    *,
    identity: CodesIdentity,
    keep: Callable[[dict[str, Any]], bool] = lambda row: True,
    progress: Callable[[int], object] = lambda clips: None,
) -> artifacts.Manifest:
    """Writes codes of the clips that `keep` takes; a finished folder of the same inputs is kept.

    Args:
      identity: of the tokenizer's codes, carried by everything made from them.
      progress: called with the number of clips done since the last call.
    """
    chosen = [i for i, row in enumerate(features.rows) if keep(row)]
    ids = [features.rows[i]["id"] for i in chosen]
    inputs = {"features": features.fingerprint, "tokenizer": identity.tokenizer}
    config = {"clips": configs.fingerprint(ids)}
    if artifacts.is_current(out, KIND, inputs=inputs, config=config):
        return artifacts.read_manifest(out)
    counts = {"clips": 0, "codes": 0}

    def rows() -> Iterator[dict[str, Any]]:
        for first in range(0, len(chosen), CLIPS_PER_CALL):
            numbers = chosen[first : first + CLIPS_PER_CALL]
            codes = reader.mels_to_codes([features.mel(i) for i in numbers])
            for i, clip in zip(numbers, codes, strict=True):
                row = {k: v for k, v in features.rows[i].items() if k not in ("start", "stop")}
                counts["clips"] += 1
                counts["codes"] += len(clip)
                yield {**row, "codes": clip.tolist()}
            progress(len(numbers))

    return write_codes(out, rows(), identity, inputs=inputs, config=config, counts=counts)
