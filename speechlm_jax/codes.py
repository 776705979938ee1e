"""Speech codes on disk: the identity of their tokenizer, and the folders that hold them.

A codes folder holds `codes.jsonl`, one object per line with "id" and "codes" (and mostly "text" and
"speaker"), and `stage.json`, which carries the identity. Folders of interleaved documents and of
dialogues carry it too. Codes of other programs may lie in Parquet instead (`data.sources`).
"""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.errors import UserError

KIND = "codes"
CODES = "codes.jsonl"


@dataclasses.dataclass(frozen=True)
class CodesIdentity:
    """Identity of the speech tokenizer that produced codes, their rate and their range.

    Attributes:
      tokenizer: fingerprint of the speech tokenizer.
      frame_rate_hz: codes per second.
      codebook_size: entries of the codebook; codes are 0 .. codebook_size-1.
    """

    tokenizer: str
    frame_rate_hz: float
    codebook_size: int

    def __post_init__(self) -> None:
        configs.above_0(self, "frame_rate_hz")
        configs.at_least(self, 0, "codebook_size")

    def to_json(self) -> dict[str, Any]:
        """Returns plain data, as in a manifest's `extra`."""
        return dataclasses.asdict(self)

    def require_same(self, other: "CodesIdentity", here: str, there: str, hint: str) -> None:
        """Refuses codes of another tokenizer.

        Raises:
          UserError: the codes differ; the message names both sides and the first field that
            differs.
        """
        for name, mine in self.to_json().items():
            theirs = getattr(other, name)
            if mine != theirs:
                raise UserError(f"{here} {name} {mine!r}, {there} {theirs!r}; {hint}")


def identity_of(manifest: artifacts.Manifest, where: str | Path) -> CodesIdentity:
    """Returns the identity that a manifest carries.

    Raises:
      UserError: the manifest carries none, or an invalid one.
    """
    names = [field.name for field in dataclasses.fields(CodesIdentity)]
    missing = [name for name in names if name not in manifest.extra]
    if missing:
        raise UserError(
            f"{where}: its {artifacts.MANIFEST} names no {missing[0]} of codes; run its stage "
            "again, or for codes made elsewhere data.declare.declare_codes"
        )
    try:
        return configs.from_json(CodesIdentity, {name: manifest.extra[name] for name in names})
    except UserError as error:
        raise UserError(f"{where}: {artifacts.MANIFEST}: {error}") from None


def read_identity(folder: str | Path) -> CodesIdentity:
    """Returns the identity of the codes in a finished folder; raises UserError as `identity_of`."""
    return identity_of(artifacts.read_manifest(folder), folder)


def read_codes(folder: str | Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a codes folder that this library wrote, in order."""
    return artifacts.read_jsonl(Path(folder) / CODES)


def write_codes(
    folder: str | Path,
    rows: Iterable[dict[str, Any]],
    identity: CodesIdentity,
    *,
    inputs: dict[str, str],
    config: Any,
    counts: dict[str, Any],
    seed: int = 0,
    files: Iterable[str] = (),
) -> artifacts.Manifest:
    """Writes a finished codes folder; replaces what was there.

    Args:
      rows: rows with "id" and "codes"; they are taken one by one, before `counts` is read.
      inputs, config, counts, seed: fields of the manifest.
      files: further files that the folder holds already.
    """
    folder = Path(folder)
    (folder / artifacts.MANIFEST).unlink(missing_ok=True)  # of older contents
    artifacts.write_jsonl(folder / CODES, rows)
    return artifacts.write_manifest(
        folder, KIND, inputs=inputs, config=config, seed=seed, counts=counts,
        files=[CODES, *files], extra=identity.to_json(),
    )  # fmt: skip
