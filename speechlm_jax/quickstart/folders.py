"""Names of all files and folders of a quickstart run."""

import dataclasses
from pathlib import Path
from typing import Any

from speechlm_jax.bundle.contents import RUN_FOLDERS
from speechlm_jax.vocab_files import TEXT_MODEL


class _Place:
    """A descriptor that joins the run's folder and a name."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, folders: Any, owner: type | None = None) -> Path:
        return folders.run / self.name


@dataclasses.dataclass(frozen=True)
class Folders:
    """The files and folders of a run, in the order in which the steps make them."""

    run: Path

    world = _Place("world.json")
    own = _Place("own.json")
    clips = _Place("clips")
    features = _Place("features")
    text_model = _Place(TEXT_MODEL)
    tokenizer = _Place(RUN_FOLDERS["tokenizer"])
    codes = _Place("codes")
    documents = _Place("documents")
    sources = _Place("sources.json")
    prepared = _Place("prepared")
    text_to_token = _Place(RUN_FOLDERS["text_to_token"])
    speech_decoder = _Place(RUN_FOLDERS["speech_decoder"])
    interleaved = _Place("interleaved")
    dialogues = _Place("dialogues")
    read_aloud = _Place("read_aloud")
    lm_interleaved = _Place(RUN_FOLDERS["lm"])
    lm_baseline = _Place("lm_baseline")
    chat = _Place(RUN_FOLDERS["chat"])
    items = _Place("items")
    audio = _Place("audio")
    timing = _Place("timing")
