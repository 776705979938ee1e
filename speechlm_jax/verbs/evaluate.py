"""A language model's checkpoint -> figures and their scored items."""

import dataclasses
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts, bucket
from speechlm_jax.bundle.contents import BUNDLE, is_whole_run, read_contents
from speechlm_jax.bundle.models import Bundle
from speechlm_jax.bundle.open import open_bundle
from speechlm_jax.errors import UserError
from speechlm_jax.evals.items import Item, figures_from_items, write_items
from speechlm_jax.evals.suites.clips import EvaluationClips
from speechlm_jax.evals.suites.held_out import loss_items
from speechlm_jax.evals.suites.language_model import lm_items
from speechlm_jax.experiment.runs import held_out_losses, trained_language_model
from speechlm_jax.train import checkpoint_folder
from speechlm_jax.verbs.devices import decoding_mesh
from speechlm_jax.verbs.paths import check_checkpoint, check_mixture

PREPARED = "prepared"  # folder of the rows in a run
_log = logging.getLogger("speechlm.evaluate")


def evaluate(
    checkpoint: str | Path,
    *,
    run: str | Path | None = None,
    mixture: str | Path | None = None,
    out: str | Path,
    seed: int = 0,
    tensor: int = 1,
) -> dict[str, Any]:
    """Scores a language model; writes figures.json and items/*.jsonl.

    The figures are the held-out loss by task and, if the bundle is a run on a closed world, those
    of spoken questions and stories.

    Args:
      checkpoint: a training run's folder or one of its checkpoints.
      run: a bundle with the checkpoint's vocabulary: its tokenizer reads the answers, and its
        evaluation clips are the questions. None takes the bundle that contains the checkpoint, if
        there is one, and otherwise only the checkpoint, which is enough for the held-out loss.
      mixture: prepared rows of the held-out loss; None takes those that the model was trained on. A
        converted model was trained on none.
      out: folder in which each checkpoint has a folder of its own.
      seed: seed of the controls and the intervals.
      tensor: see `devices.decoding_mesh`.

    Raises:
      UserError: there is no checkpoint, it has another vocabulary, or nothing can be scored.
    """
    checkpoint = Path(checkpoint)
    meta = check_checkpoint(checkpoint)
    if mixture is not None:
        check_mixture(mixture)
    mesh = decoding_mesh(tensor)
    bundle = open_bundle(_around(checkpoint) if run is None else run, batch_size=64, mesh=mesh)
    vocab = None if run is None else bundle.vocab
    experiment = trained_language_model(checkpoint, meta, kind="lm", vocab=vocab)
    name = _name(checkpoint)
    rows = _find_rows(bundle, experiment.data.mixture) if mixture is None else mixture
    items = list(_items(bundle, checkpoint, rows, name, seed=seed))
    if not items:
        raise UserError(
            f"{checkpoint}: there is nothing to score it on: no validation rows, and no evaluation "
            f"clips in {bundle.folder}; give --mixture, rows that `speechlm prepare` wrote"
        )
    folder = Path(out) / name
    shutil.rmtree(folder / "items", ignore_errors=True)  # left from an earlier evaluation
    write_items(folder / "items", items)
    figures = {
        figure: dataclasses.asdict(value)
        for figure, value in figures_from_items(items, seed=seed).items()
    }
    result = {"checkpoint": str(checkpoint), "seed": seed, "figures": figures}
    artifacts.write_json(folder / "figures.json", result)
    return {**result, "items": str(folder / "items")}


def _around(checkpoint: Path) -> Path:
    """Returns the folder of the bundle around a checkpoint, if it has the checkpoint's vocabulary.

    Otherwise returns the checkpoint itself.
    """
    workdir = checkpoint_folder.training_folder(checkpoint)
    if not (workdir.parent / BUNDLE).is_file():
        if is_whole_run(workdir.parent):
            _log.warning(
                "%s: only held-out loss; `speechlm bundle upgrade %s` adds what its run has",
                checkpoint, workdir.parent,
            )  # fmt: skip
        return checkpoint
    vocab = read_contents(workdir.parent).vocab
    its = checkpoint_folder.told_meta(checkpoint).identity.get("vocabulary")
    return workdir.parent if vocab is not None and vocab.fingerprint == its else checkpoint


def _find_rows(bundle: Bundle, mixture: str) -> str | Path | None:
    """Returns where the rows of a training are now: the run may have been moved."""
    if not mixture:
        return None  # a converted model
    for place in (mixture, bundle.folder / PREPARED / Path(mixture).name):
        if bucket.is_address(place) or Path(place).is_file():
            return place
    _log.warning("%s: is not there; held-out loss is left out", mixture)
    return None


def _items(
    bundle: Bundle, checkpoint: Path, rows: str | Path | None, name: str, *, seed: int
) -> Iterator[Item]:
    if rows is not None:
        yield from loss_items(held_out_losses(checkpoint, mixture=rows, mesh=bundle.mesh))
    spoken = EvaluationClips.find(bundle.folder)
    if spoken is not None:
        inference = bundle.language_model(checkpoint)
        yield from lm_items(name, spoken, inference, bundle.writer, bundle.read, seed=seed)


def _name(checkpoint: Path) -> str:
    """Returns a name for figures: the run's, as in the report, with the step if one is given."""
    path, training = checkpoint.resolve(), checkpoint_folder.training_folder(checkpoint)
    name = training.name.removeprefix("lm_")
    return f"{name}-{int(path.name)}" if path.name.isdigit() and path != training else name
