"""Finds the files that ship beside the library (tasks/, configs/), and imports task files by path.

They lie at the top of a checkout, and inside an installed package (setup.py), so that nothing
installs top-level packages called `tasks` or `configs`.
"""

import difflib
import hashlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from speechlm_jax.errors import UserError
from speechlm_jax.user_code import user_code

FOLDERS = ("configs", "tasks")
RUN_VARIABLE = "SPEECHLM_RUN"  # names the run whose data the shipped tasks read
_PACKAGE = Path(__file__).resolve().parent


def root() -> Path:
    """Returns the folder that holds configs/ and tasks/."""
    inside = _PACKAGE / "_shipped"
    return inside if inside.is_dir() else _PACKAGE.parent


def names() -> list[str]:
    """Returns every Python file that ships, e.g. "configs/lm_150m.py"."""
    top = root()
    found = (path for folder in FOLDERS for path in (top / folder).glob("*.py"))
    return sorted(path.relative_to(top).as_posix() for path in found)


def find(name: str | Path) -> Path:
    """Returns the file itself if `name` exists, else the shipped file of that name.

    Raises:
      UserError: neither exists (the message names the nearest shipped file), or it is a folder.
    """
    if os.path.isfile(name):  # pathlib's raises where a name is too long
        return Path(name)
    if os.path.isdir(name):
        raise UserError(f"{name}: is a folder; give a file")
    known = names()
    if Path(name).as_posix() in known:
        return root() / name
    near = difflib.get_close_matches(Path(name).as_posix(), known, n=1, cutoff=0.6)
    hint = f"did you mean '{near[0]}', which ships?" if near else f"these ship: {', '.join(known)}"
    raise UserError(f"{name}: no such file; {hint}")


def import_file(name: str | Path) -> ModuleType:
    """Runs a Python file as a module, once however often and by whatever path it is requested.

    Raises:
      UserError: there is no such file, here or among those that ship, or it fails.
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
            with user_code(str(name)):
                spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[key]
            raise
    return sys.modules[key]


def find_module(name: str) -> Path | None:
    """Returns the file that `import_module` would run, or None for a module by its dotted name.

    Nothing is imported or run.

    Raises:
      UserError: there is no such file or module, or another module has that name.
    """
    place = os.path.expanduser(name)
    if os.path.isdir(place) and not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"--module {name}: is a folder; give a file in it, e.g. {name}/tasks.py")
    if place.endswith(".py") or os.sep in place or os.path.isfile(place):
        return find(place)
    top = name.partition(".")[0]
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"--module {name}: no such file, and no module is called so")
    if top in sys.stdlib_module_names:
        raise UserError(f"--module {name}: is a module of Python; for a file give {name}.py")
    _look_here()
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # __main__
        spec = None
    if spec is None:
        raise _no_module(name, top)
    here = [path for path in (Path(top, "__init__.py"), Path(f"{top}.py")) if path.is_file()]
    if here and (spec.origin is None or not os.path.samefile(here[0], spec.origin)):
        found = spec.origin or "a folder"
        raise UserError(f"--module {name}: is {found}; for the one here give its file, {here[0]}")
    if spec.origin is None and top == name:
        raise UserError(f"--module {name}: is a folder; name a module in it, e.g. {name}.tasks")
    return None


def import_module(name: str) -> ModuleType:
    """Imports a user's registrations: a module ("my_lab.tasks") or a file ("my_lab/tasks.py").

    Raises:
      UserError: there is no such module or file, or it fails (the message names the line).
    """
    path = find_module(name)
    if path is not None:
        return import_file(path)
    try:
        with user_code(f"--module {name}"):
            found = importlib.import_module(name)
    except UserError as error:
        cause = error.__cause__
        missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
        if missing is None or not f"{name}.".startswith(f"{missing}."):
            raise
        raise _no_module(name, missing) from None
    if getattr(found, "__file__", None) is None:
        raise UserError(f"--module {name}: is a folder; name a module in it, e.g. {name}.tasks")
    return found


def _look_here() -> None:
    """Adds the current folder to the places that modules are imported from, after installed ones.

    A console script, unlike `python -m`, does not look there. If it were searched first, a queue.py
    there would hide Python's.
    """
    if "" not in sys.path:
        sys.path.append("")


def _no_module(name: str, missing: str) -> UserError:
    return UserError(
        f"--module {name}: no module '{missing}'; run in the folder that holds it, or put that "
        "folder on PYTHONPATH"
    )
