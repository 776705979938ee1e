"""Identity of a run: a checkpoint is resumed only if all that decides the result is equal."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from speechlm_jax import config as configs
from speechlm_jax.errors import UserError
from speechlm_jax.train.checkpoint_folder import Meta
from speechlm_jax.train.stage import Stage

# Fields, by class name, that change how a run is carried out but not its result.
OPERATIONAL = {
    "TrainConfig": frozenset(
        {
            "mesh",
            "log_every_steps",
            "save_every_steps",
            "keep_last",
            "keep_every_steps",
            "keep_every_hours",
            "max_skipped_steps",
            "profile_steps",
            "wandb_project",
            "hang_seconds",
        }
    )
}


def decisive(data: Any, operational: Mapping[str, frozenset[str]] = OPERATIONAL) -> Any:
    """Returns config data without the fields that may change when a run resumes."""
    if isinstance(data, list):
        return [decisive(item, operational) for item in data]
    if not isinstance(data, dict):
        return data
    left_out = operational.get(data.get("class", ""), frozenset())
    return {key: decisive(item, operational) for key, item in data.items() if key not in left_out}


def check_run_identity(
    folder: Path,
    meta: Meta,
    stage: Stage,
    resolved: Any,
    operational: Mapping[str, frozenset[str]] = OPERATIONAL,
) -> None:
    """Checks that a checkpoint is of the same run as a stage and its resolved config.

    Configs are compared field by field, as this version reads them: one that an older version wrote
    is of the same run, whatever fields were added or moved since.

    Raises:
      UserError: the runs differ; the message names the fields that do, with both values.
    """
    theirs = decisive(configs.upgraded(meta.config, resolved), operational)
    mine = decisive(configs.to_json(resolved), operational)
    found = [*_identities(meta, stage, mine == theirs), *configs.differences(theirs, mine)]
    if not found:
        return
    raise UserError(
        f"{folder}: was trained with {configs.listed(found)}; use another workdir "
        f"(init_from takes the weights along)"
    )


def _identities(meta: Meta, stage: Stage, same_config: bool) -> Iterator[str]:
    """Yields the differences in the stage's name and in the data behind its identities."""
    mine = {"stage": stage.name, **stage.identity}
    theirs = {"stage": meta.stage, **meta.identity}
    for name in sorted(mine.keys() | theirs.keys()):
        if mine.get(name) == theirs.get(name):
            continue
        old, new = meta.described.get(name), stage.described.get(name)
        details = [] if old is None or new is None else list(configs.differences(old, new, name))
        if details:
            yield from details
        else:
            yield f"{name} {theirs.get(name)}, this run has {mine.get(name)}"
            if name == "plan" and same_config:
                yield "the config is the same, so its rows were prepared anew"
