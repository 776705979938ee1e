"""A feature folder -> a codes folder: what the tokenizer hears in every clip."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.audio.recordings import Features
from speechlm_jax.jobs.commit import SHARDS, clear
from speechlm_jax.jobs.shards import iter_shards, total
from speechlm_jax.speech_tokenizer.reading import Transcriber

KIND = "codes"
CODES = "codes.jsonl"
CLIPS_PER_CALL = 512  # and shard: a crash loses the seconds that this many take


def identity(reader: Transcriber, fingerprint: str) -> dict[str, Any]:
    """What a codes folder says of its codes: whose they are, their rate and their range."""
    return {
        "tokenizer": fingerprint,
        "frame_rate_hz": reader.config.frame_rate_hz,
        "codebook_size": reader.config.quantizer.codebook_size,
    }


def features_to_codes(
    features: Features,
    reader: Transcriber,
    out: str | Path,
    *,
    tokenizer: str,
    keep: Callable[[dict[str, Any]], bool] = lambda row: True,
    progress: Callable[[int], object] = lambda clips: None,
) -> artifacts.Manifest:
    """Writes codes of the clips that `keep` takes: `codes.jsonl` and `stage.json`.

    Killed, the same call goes on; a finished folder of the same inputs is kept.

    Args:
      tokenizer: fingerprint of the tokenizer, carried by everything made from its codes.
      progress: called with the number of clips done since the last call.
    """
    chosen = [i for i, row in enumerate(features.rows) if keep(row)]
    ids = [features.rows[i]["id"] for i in chosen]
    inputs = {"features": features.fingerprint, "tokenizer": tokenizer}
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
    (out / artifacts.MANIFEST).unlink(missing_ok=True)  # of what lay there before
    artifacts.write_jsonl(out / CODES, rows)
    manifest = artifacts.write_manifest(
        out, KIND, inputs=inputs, config=config, counts=counts, files=[CODES],
        extra=identity(reader, tokenizer),
    )  # fmt: skip
    clear(out)
    return manifest


def _encode(
    features: Features, numbers: list[int], reader: Transcriber, path: Path
) -> dict[str, int]:
    """Shard task: writes the rows of some clips with their codes; returns how many there are."""
    codes = reader.mels_to_codes([features.mel(i) for i in numbers])
    rows = [
        {k: v for k, v in features.rows[i].items() if k not in ("start", "stop")} for i in numbers
    ]
    artifacts.write_jsonl(
        path, ({**row, "codes": clip.tolist()} for row, clip in zip(rows, codes, strict=True))
    )
    return {"clips": len(codes), "codes": sum(map(len, codes))}
