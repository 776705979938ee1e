"""Where everything of a quickstart run lies: one name for each step's folder."""

import dataclasses
import os
from pathlib import Path

from speechlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Folders:
    """The folders and files of a run, in the order in which steps make them."""

    run: Path

    def __getattr__(self, name: str) -> Path:
        if name not in NAMES:
            raise AttributeError(name)
        return self.run / NAMES[name]


NAMES = {
    "world": "world.json",
    "own": "own.json",
    "clips": "clips",
    "features": "features",
    "text_model": "text.model",
    "tokenizer": "tokenizer",
    "codes": "codes",
    "documents": "documents",
    "sources": "sources.json",
    "prepared": "prepared",
    "text_to_token": "text_to_token",
    "speech_decoder": "speech_decoder",
    "interleaved": "interleaved",
    "dialogues": "dialogues",
    "read_aloud": "read_aloud",
    "lm_interleaved": "lm_interleaved",
    "lm_baseline": "lm_baseline",
    "chat": "chat",
    "scores": "scores",
    "items": "items",
    "audio": "audio",
    "timing": "timing",
}


def find_run(run: str | Path) -> Folders:
    """The folders of a run that has a speech tokenizer; UserError if it has none."""
    folders = Folders(Path(run))
    if not os.path.isfile(folders.text_model) or not os.path.isdir(folders.tokenizer):
        raise UserError(
            f"{run}: holds no run with a speech tokenizer; run `speechlm quickstart` first, or "
            "give --run the folder of one"
        )
    return folders
