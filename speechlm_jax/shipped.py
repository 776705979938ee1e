"""Finds the files that ship beside the library (tasks/, configs/), and imports task files by path.

In a checkout they stand at its top, in an installed package inside it (setup.py), so that nothing
installs top-level packages called `tasks` or `configs`.
"""

import difflib
import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from speechlm_jax.errors import UserError

FOLDERS = ("configs", "tasks")
RUN_VARIABLE = "SPEECHLM_RUN"  # names the run whose data tasks/quickstart.py reads
_PACKAGE = Path(__file__).resolve().parent


def root() -> Path:
    """The folder that holds configs/ and tasks/."""
    inside = _PACKAGE / "_shipped"
    return inside if inside.is_dir() else _PACKAGE.parent


def names() -> list[str]:
    """Every Python file that ships, e.g. "tasks/quickstart.py"."""
    top = root()
    found = (path for folder in FOLDERS for path in (top / folder).glob("*.py"))
    return sorted(path.relative_to(top).as_posix() for path in found)


def find(name: str | Path) -> Path:
    """The file itself if `name` exists, else the shipped file of that name.

    Raises:
      UserError: neither exists; the nearest shipped name is given.
    """
    if Path(name).is_file():
        return Path(name)
    known = names()
    if Path(name).as_posix() in known:
        return root() / name
    near = difflib.get_close_matches(Path(name).as_posix(), known, n=1, cutoff=0.6)
    hint = f"did you mean '{near[0]}', which ships?" if near else f"these ship: {', '.join(known)}"
    raise UserError(f"{name}: no such file; {hint}")


def import_file(name: str | Path) -> ModuleType:
    """Runs a Python file as a module, once however often and by whatever path it is asked for.

    Raises:
      UserError: there is no such file, here or among those that ship.
    """
    path = find(name).resolve()
    # Two files of one name are two modules. The name has no dots or slashes: TFDS takes it apart.
    key = f"_speechlm_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, path)
        if spec is None or spec.loader is None:
            raise UserError(f"{name}: is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[key]
            raise
    return sys.modules[key]


def import_module(name: str) -> ModuleType:
    """Imports a user's registrations: a module ("my_lab.tasks") or a file ("my_lab/tasks.py").

    Raises:
      UserError: there is no such module or file; an error inside it is left as it is.
    """
    if name.endswith(".py"):
        return import_file(name)
    if "" not in sys.path:  # a console script, unlike `python -m`, does not look where it runs
        sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise UserError(
            f"--module {name}: no module '{error.name}'; run in the folder that holds it, "
            "or put that folder on PYTHONPATH"
        ) from None
