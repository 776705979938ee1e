"""Safe reading of files in a foreign folder: no file outside of it, and JSON only as objects."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts
from speechlm_jax.errors import UserError

BLOBS, SNAPSHOTS = "blobs", "snapshots"  # in the hub's cache, where snapshots are links to blobs
WHISPER_TYPES = ("whisper", "whisper_vq")  # `model_type` of speech models, which take no --run
MOST_SHOWN = 120  # characters of a foreign value in an error
MOST_NAMED = 8  # names in an error


def inside(folder: Path, name: str) -> Path:
    """Returns the path of a file in a folder (or in the hub's cache, if the folder is a snapshot).

    Raises:
      UserError: the name, or a link of that name, leads out of the folder.
    """
    try:
        path, top = (folder / name).resolve(), folder.resolve()
        path.exists()
    except (OSError, RuntimeError, ValueError):  # too long, a loop of links, a NUL
        raise UserError(f"{folder}: {shown(name)}: is no name of a file") from None
    tops = [top]
    if top.parent.name == SNAPSHOTS:
        tops.append(top.parent.parent / BLOBS)
    if path == top or not any(path.is_relative_to(one) for one in tops):
        raise UserError(
            f"{folder}: {shown(name)}: lies outside the folder; copy the file that is meant into it"
        )
    return folder / name


def has(folder: Path, name: str) -> bool:
    """Returns whether a folder has a file of this name."""
    return (folder / name).is_file()


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """Reads the object in a JSON file of a folder; raises UserError if it holds anything else."""
    path = inside(folder, name)
    try:
        data = artifacts.read_json(path)
    except (ValueError, RecursionError) as error:  # a number of too many digits; nested too deep
        raise UserError(f"{path}: is not JSON that can be read ({shown(error)})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: is not a JSON object")
    return data


def read_text(folder: Path, name: str) -> str:
    """Reads the text of a file of a folder; raises UserError if it is not UTF-8."""
    path = inside(folder, name)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8; convert it, e.g. `iconv -t utf-8`") from None


def shown(value: Any) -> str:
    """Returns a foreign value for an error message: on one line, cut to `MOST_SHOWN` characters."""
    text = ascii(value) if isinstance(value, str) else ascii(str(value))[1:-1]
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def listed(names: Sequence[str]) -> str:
    """Returns foreign names for an error message: at most `MOST_NAMED`, and how many more."""
    more = len(names) - MOST_NAMED
    said = ", ".join(shown(name)[1:-1] for name in names[:MOST_NAMED])
    return said + (f" and {more} more" if more > 0 else "")
