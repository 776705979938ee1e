"""The quickstart's steps in order; a step is skipped if its output exists already."""

import logging
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from speechlm_jax.folder_lock import FolderLock
from speechlm_jax.quickstart import (
    clock,
    evaluate,
    given,
    making,
    own_data,
    own_results,
    samples,
    summary,
)
from speechlm_jax.quickstart.folders import Folders
from speechlm_jax.quickstart.run import Chain, Quickstart
from speechlm_jax.quickstart.sizes import Size, make_config
from speechlm_jax.world.tables import load_tables
from speechlm_jax.world.world import World

Steps = tuple[tuple[str, Callable[[Any], None]], ...]
STEPS: Steps = (
    ("corpora", making.speak),
    ("tokenizer", making.train_tokenizer),
    ("codes", making.encode),
    ("text_to_token_and_decoder", making.train_from_codes),
    ("interleave", making.interleave),
    ("pretrain", making.pretrain),
    ("chat", making.fine_tune),
    ("evaluate", evaluate.score),
    ("audio", samples.write_samples),
)
OWN_STEPS: Steps = (
    ("recordings", own_data.read_own),
    ("tokenizer", making.train_tokenizer),
    ("codes", own_data.encode),
    ("text_to_token_and_decoder", making.train_from_codes),
    ("interleave", own_data.interleave),
    ("pretrain", making.pretrain),
    ("evaluate", own_results.score),
    ("audio", own_results.write_samples),
)
DEFAULTS = {"size": "full", "seed": 0}
_log = logging.getLogger("speechlm.quickstart")


def quickstart(
    out: str | Path,
    *,
    size: Size = "full",
    world: str | Path | None = None,
    speech: str | Path | None = None,
    text: str | Path | None = None,
    audio_anywhere: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Runs every step in `out` and returns the paths of the report and of its figures.

    Without `speech` and `text` it makes a world of its own; otherwise it uses those recordings and
    that text (see `own_data`). If `audio_anywhere` is true, recordings may be outside of `speech`.

    Raises:
      UserError: the inputs have a fault; outputs made so far stay.
      Stopped: SIGINT or SIGTERM came; the same command continues the run.
    """
    options = {"size": size, "world": world, "speech": speech, "text": text, "seed": seed}
    command = _command(out, options)
    run = Path(out).resolve()
    folders = Folders(run)
    speech, text = (None if place is None else Path(place) for place in (speech, text))
    given.check(folders, world=None if world is None else Path(world), speech=speech, text=text)
    own = None
    if speech is not None and text is not None:
        own = own_data.make_own(
            folders, speech, text, size=size, seed=seed, audio_anywhere=audio_anywhere
        )
    with FolderLock(run):
        if own is not None:
            _take_steps(own, OWN_STEPS)
            own_results.write(own, command=command)
        else:
            made = World.make(load_tables(world), seed)
            q = Quickstart(folders, config=make_config(size), seed=seed, world=made)
            _take_steps(q, STEPS)
            summary.write(q, command=command)
    return {"report": str(run / "report.html"), "figures": str(run / "report.json")}


def _command(out: str | Path, options: Mapping[str, Any]) -> str:
    """Returns the shell command that makes the same run again, without defaults."""
    words = ["speechlm", "quickstart", "--out", str(out)]
    for name, value in options.items():
        if value not in (None, DEFAULTS.get(name)):
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def _take_steps(q: Chain, steps: Steps) -> None:
    for number, (name, step) in enumerate(steps, 1):
        _log.info("step %d of %d: %s", number, len(steps), name.replace("_", " "))
        with clock.timed(q.folders.timing, name):
            step(q)
