"""Checks of the quickstart's arguments, made before JAX is imported."""

import os
from pathlib import Path

from speechlm_jax.audio.recordings import CLIPS
from speechlm_jax.errors import UserError
from speechlm_jax.quickstart.folders import Folders
from speechlm_jax.world.tables import load_tables


def check(folders: Folders, *, world: Path | None, speech: Path | None, text: Path | None) -> None:
    """Checks that a quickstart can start with these tables, or with this speech and text.

    Raises:
      UserError: an input is missing or broken, or the folder holds a run of the other kind.
    """
    if os.path.lexists(folders.run) and not os.path.isdir(folders.run):
        raise UserError(f"--out {folders.run}: is a file; name a folder")
    if speech is None and text is None:
        load_tables(world)
        _refuse(folders.own, "your own recordings")
        return
    if speech is None or text is None:
        raise UserError("--speech and --text: give both or neither")
    if world is not None:
        raise UserError("--world: your own recordings need none; leave it out")
    if not os.path.isfile(speech / CLIPS):
        raise UserError(
            f"{speech}: has no {CLIPS}; give --speech a folder with one (audio, text, speaker)"
        )
    if not os.path.isfile(text):
        what = "is a folder" if os.path.isdir(text) else "no such text file"
        raise UserError(f"{text}: {what}; give --text a file of plain text")
    _refuse(folders.world, "the world that it makes itself")


def _refuse(mark: Path, other: str) -> None:
    """Raises UserError if `mark` exists: two kinds of run would undo each other's steps."""
    if os.path.isfile(mark):
        raise UserError(f"{mark.parent}: holds a run on {other}; give another --out")
