"""A feature folder -> a codes folder, by a trained speech tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.audio.recordings import Features
from speechlm_jax.codes import KIND, CodesIdentity, write_codes
from speechlm_jax.jobs.commit import SHARDS, clear
from speechlm_jax.jobs.shards import iter_shards, total
from speechlm_jax.speech_tokenizer.reading import Transcriber

CLIPS_PER_CALL = 512  # also the clips of a shard: a crash loses the work on at most one


def features_to_codes(
    features: Features,
    reader: Transcriber,
    out: str | Path,
    *,
    identity: CodesIdentity,
    keep: Callable[[dict[str, Any]], bool] = lambda row: True,
    progress: Callable[[int], object] = lambda clips: None,
) -> artifacts.Manifest:
    """Writes the codes of the clips for which `keep` is true: `codes.jsonl` and `stage.json`.

    After an interruption, the same call continues. A finished folder of the same inputs is kept.

    Args:
      identity: identity of the tokenizer's codes, which is saved with the codes.
      progress: function called with the number of clips done since its last call.
    """
    chosen = [i for i, row in enumerate(features.rows) if keep(row)]
    ids = [features.rows[i]["id"] for i in chosen]
    inputs = {"features": features.fingerprint, "tokenizer": identity.tokenizer}
    config = {"clips": configs.fingerprint(ids)}
    out = Path(out)
    if artifacts.is_current(out, KIND, inputs=inputs, config=config):
        clear(out)
        return artifacts.read_manifest(out)
    calls = [chosen[i : i + CLIPS_PER_CALL] for i in range(0, len(chosen), CLIPS_PER_CALL)]
    made = []
    for shard in iter_shards(
        lambda numbers, path: _encode(features, numbers, reader, path),
        calls,
        folder=out / SHARDS,
        fingerprint=configs.fingerprint([inputs, config, CLIPS_PER_CALL]),
    ):
        made.append(shard)
        progress(total([shard], "clips"))
    counts = {name: total(made, name) for name in ("clips", "codes")}
    rows = (row for shard in made for row in artifacts.read_jsonl(shard.path))
    manifest = write_codes(out, rows, identity, inputs=inputs, config=config, counts=counts)
    clear(out)
    return manifest


def _encode(
    features: Features, numbers: list[int], reader: Transcriber, path: Path
) -> dict[str, int]:
    """Shard task: writes rows of clips with their codes; returns the numbers of clips and codes."""
    codes = reader.mels_to_codes([features.mel(i) for i in numbers])
    rows = [
        {k: v for k, v in features.rows[i].items() if k not in ("start", "stop")} for i in numbers
    ]
    artifacts.write_jsonl(
        path, ({**row, "codes": clip.tolist()} for row, clip in zip(rows, codes, strict=True))
    )
    return {"clips": len(codes), "codes": sum(map(len, codes))}
