"""Trained stages -> a bundle; contents of a bundle; upgrade of a run of an earlier version."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from speechlm_jax.bundle.contents import PartName
from speechlm_jax.bundle.make import make_bundle, show_bundle, upgrade_bundle

Action = Literal["show", "make", "upgrade"]


def bundle(
    action: Action, folder: str | Path, *, parts: Mapping[PartName, str | Path]
) -> dict[str, Any]:
    """Shows, makes or upgrades the bundle of a folder, and returns its contents.

    Args:
      folder: folder of the bundle.
      parts: for `make`, a folder for each part to be joined.

    Raises:
      UserError: the folder is no bundle (`show`) or no whole run (`upgrade`), or the parts do not
        belong together (`make`).
    """
    if action == "make":
        return make_bundle(folder, parts)
    return show_bundle(folder) if action == "show" else upgrade_bundle(folder)
