"""The quickstart's steps in order; each is skipped when its output is already there."""

import fcntl
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speechlm_jax.errors import UserError
from speechlm_jax.quickstart import clock, evaluate, making, samples, summary
from speechlm_jax.quickstart.folders import Folders
from speechlm_jax.quickstart.run import Quickstart
from speechlm_jax.quickstart.sizes import Size, make_config
from speechlm_jax.world.tables import load_tables
from speechlm_jax.world.world import World

STEPS: tuple[tuple[str, Callable[[Quickstart], None]], ...] = (
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
_log = logging.getLogger("speechlm.quickstart")


def quickstart(
    out: str | Path,
    *,
    size: Size = "full",
    world: str | Path | None = None,
    speech: str | Path | None = None,
    text: str | Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Runs every step in `out` and returns where the report lies and what it says in short.

    Raises:
      UserError: something in the inputs; what was made stays.
      Stopped: SIGINT or SIGTERM; the same command goes on.
    """
    if speech is not None or text is not None:
        raise UserError("--speech and --text: give both or neither")
    run = Path(out)
    run.mkdir(parents=True, exist_ok=True)
    with _locked(run):
        made = Quickstart(
            Folders(run), make_config(size), World.make(load_tables(world), seed), seed
        )
        for number, (name, step) in enumerate(STEPS, 1):
            _log.info("step %d of %d: %s", number, len(STEPS), name.replace("_", " "))
            with clock.timed(made.folders.timing, name):
                step(made)
        summary.write(made)
    return {"report": str(run / "report.html"), "figures": str(run / "report.json")}


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Two processes in one run folder would harm each other; the second is refused."""
    with open(run / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{run}: another quickstart is running in it; wait, or give another --out"
            ) from None
        yield
