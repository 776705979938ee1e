"""Whether two configs are of one run: what decides the result is equal in both."""

from collections.abc import Mapping
from typing import Any

# Fields that change how a run is carried out and not what comes out of it.
OPERATIONAL = {
    "TrainConfig": frozenset(
        {
            "mesh",
            "log_every_steps",
            "save_every_steps",
            "keep_last",
            "keep_every_steps",
            "keep_every_hours",
            "profile_steps",
            "wandb_project",
            "hang_seconds",
        }
    )
}


def decisive(data: Any, operational: Mapping[str, frozenset[str]] = OPERATIONAL) -> Any:
    """Config data without what may change between two sittings of one run."""
    if isinstance(data, list):
        return [decisive(item, operational) for item in data]
    if not isinstance(data, dict):
        return data
    left_out = operational.get(data.get("class", ""), frozenset())
    return {key: decisive(item, operational) for key, item in data.items() if key not in left_out}


def first_difference(theirs: Any, mine: Any, path: str = "") -> str:
    """The first field in which two configs differ, and what both sides have."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        for key in sorted(theirs.keys() | mine.keys()):
            if theirs.get(key) != mine.get(key):
                where = f"{path}.{key}" if path else key
                return first_difference(theirs.get(key), mine.get(key), where)
    return f"{path or 'config'}={theirs!r}, this run has {mine!r}"
