"""Trained stages -> a bundle; what a bundle holds; the upgrade of a run of an earlier version."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from speechlm_jax.bundle.contents import PartName
from speechlm_jax.bundle.make import make_bundle, show_bundle, upgrade_bundle

Action = Literal["show", "make", "upgrade"]


def bundle(
    action: Action, folder: str | Path, *, parts: Mapping[PartName, str | Path]
) -> dict[str, Any]:
    """Shows, makes or upgrades the bundle of a folder, and returns what it holds.

    Args:
      folder: of the bundle.
      parts: of `make`: a folder for each part that is joined.

    Raises:
      UserError: the folder is no bundle or no such run, or the parts do not belong together.
    """
    if action == "make":
        return make_bundle(folder, parts)
    return show_bundle(folder) if action == "show" else upgrade_bundle(folder)
