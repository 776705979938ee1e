"""A language model's checkpoint -> figures and the items behind them."""

import dataclasses
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts, bucket
from speechlm_jax import config as configs
from speechlm_jax.errors import UserError
from speechlm_jax.evals.items import Item, figures_from_items, write_items
from speechlm_jax.evals.suites.clips import EvaluationClips
from speechlm_jax.evals.suites.held_out import loss_items
from speechlm_jax.experiment.runs import held_out_losses, load_inference
from speechlm_jax.quickstart.evaluate import lm_items
from speechlm_jax.quickstart.models import Models
from speechlm_jax.verbs.opening import open_run, open_vocab
from speechlm_jax.verbs.paths import BASE_VOCAB, CHECKPOINT, check_folder
from speechlm_jax.world.world import World

_log = logging.getLogger("speechlm.evaluate")


def evaluate(
    checkpoint: str | Path, *, run: str | Path, out: str | Path, seed: int = 0
) -> dict[str, Any]:
    """Scores a language model of a run's vocabulary; writes figures.json and items/*.jsonl.

    Held-out loss by task, and where the run is on a closed world, spoken questions and stories.

    Args:
      checkpoint: a training run's folder, or one of its steps.
      run: a quickstart run's folder: its evaluation clips and its tokenizer's reader. Or what has
        the checkpoint's vocabulary alone (`speechlm vocab`, `convert`): then only held-out loss.
      out: folder; each checkpoint has its own inside.
      seed: of the controls and the intervals.

    Raises:
      UserError: no checkpoint, one of another vocabulary, or nothing to score it on.
    """
    checkpoint = Path(checkpoint)
    check_folder(checkpoint, CHECKPOINT)
    vocab, _ = open_vocab(run)
    _, experiment = load_inference(checkpoint, kind="lm", vocab=vocab)
    models = None if (Path(run) / BASE_VOCAB).is_file() else open_run(run, batch_size=64)
    name = _name(checkpoint)
    items = list(_items(models, checkpoint, experiment.data.mixture, name, seed=seed))
    if not items:
        raise UserError(
            f"{checkpoint}: there is nothing to score it on: its mixture has no validation rows "
            f"and {run} no evaluation clips"
        )
    folder = Path(out) / name
    shutil.rmtree(folder / "items", ignore_errors=True)  # of an earlier step of this checkpoint
    write_items(folder / "items", items)
    figures = {
        figure: dataclasses.asdict(value)
        for figure, value in figures_from_items(items, seed=seed).items()
    }
    result = {"checkpoint": str(checkpoint), "seed": seed, "figures": figures}
    artifacts.write_json(folder / "figures.json", result)
    return {**result, "items": str(folder / "items")}


def _items(
    models: Models | None, checkpoint: Path, mixture: str, name: str, *, seed: int
) -> Iterator[Item]:
    prepared = mixture
    if models is not None and not (bucket.is_address(mixture) or Path(mixture).is_file()):
        prepared = models.folders.prepared / Path(mixture).name  # where a run that was moved has it
    if bucket.is_address(prepared) or Path(prepared).is_file():
        yield from loss_items(held_out_losses(checkpoint, mixture=prepared))
    else:
        _log.warning("%s: is not there; held-out loss is left out", mixture)
    if models is not None and models.folders.world.is_file():
        world = configs.from_json(World, artifacts.read_json(models.folders.world))
        spoken = EvaluationClips(models.codes("evaluation"), world)
        yield from lm_items(models, checkpoint, name, spoken=spoken, seed=seed)


def _name(checkpoint: Path) -> str:
    """A name for figures: the run's, as in the report, and the step if one is given."""
    path = checkpoint.resolve()
    if not path.name.isdigit():
        return path.name.removeprefix("lm_")
    return f"{path.parent.parent.name.removeprefix('lm_')}-{int(path.name)}"
