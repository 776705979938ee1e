"""Reports errors of a user's own code in one line: whose code it is, and where it failed.

The code of a user: preprocessors and functions of tasks, config files, files of --module.
"""

import contextlib
import errno
import functools
import logging
import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from speechlm_jax.errors import Stopped, UserError

_log = logging.getLogger("speechlm.user_code")

_PACKAGE = str(Path(__file__).resolve().parent)
_NOT_THE_USERS = (_PACKAGE, sysconfig.get_path("stdlib"), "site-packages", "<", "__autograph_")
_LINE = re.compile(
    r'File "([^"]+)", line (\d+)(?:, in |$)', re.M
)  # the second: a SyntaxError's own
# Text that TensorFlow puts before an error that was raised inside one of its pipelines.
_WRAPPING = re.compile(
    r"\{\{function_node [^}]*\}\}\s*|Error in user-defined function passed to .*? transformation "
    r"with iterator: \S+: |Function invocation produced "
)


@contextlib.contextmanager
def user_code(whose: str) -> Iterator[None]:
    """Runs code of a user; `whose` names it, e.g. "task lab_text".

    Raises:
      UserError: "<whose>: <what is wrong>" for errors of the code, also inside a TensorFlow
        pipeline; not for a stop or interrupt, lack of memory or a full disk. The traceback is
        logged, where --verbose shows it.
    """
    try:
        yield
    except (Stopped, MemoryError, KeyboardInterrupt, GeneratorExit):
        raise
    except UserError as error:
        raise UserError(f"{whose}: {error}") from error
    except SystemExit as error:
        raise UserError(f"{whose}: ends the process; leave exit() out") from error
    except BaseException as error:  # code that is not ours may raise anything
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        _log.debug("%s", whose, exc_info=True)
        raise UserError(f"{whose}: {_describe(error)}") from error


def is_users(file: str) -> bool:
    """Returns whether a Python file is neither ours nor installed."""
    return not any(mark in file for mark in _NOT_THE_USERS)


def _describe(error: BaseException) -> str:
    """Returns one line: the preprocessor that ran, the error, the user's line that raised it."""
    text = str(error)
    ours = re.search(r"UserError: (.*)", text)  # one of ours that went through TensorFlow
    if ours:
        return ours.group(1).strip()
    where = _user_line("".join(traceback.format_exception(error)))
    return f"{_preprocessor(error)}{_reason(error, text)}{where}"


def _reason(error: BaseException, text: str) -> str:
    if isinstance(error, SyntaxError):  # its text says the line too
        text = error.msg
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if text.startswith("in user code:"):  # AutoGraph's: the exception itself comes last
        return lines[-1]
    if type(error).__module__.startswith("tensorflow"):
        return _WRAPPING.sub("", lines[0]) if lines else type(error).__name__
    return ": ".join([type(error).__name__, *lines[:1]])


def _user_line(text: str) -> str:
    """Returns " (my_lab.py:12)": the innermost line of a traceback in a user's file, or ""."""
    found = [f" ({Path(file).name}:{line})" for file, line in _LINE.findall(text) if is_users(file)]
    return found[-1] if found else ""


def _preprocessor(error: BaseException) -> str:
    """Names the preprocessor that SeqIO was calling and the fields it was given; "" elsewhere."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in filter(_is_seqio, frames):
        step, dataset = frame.f_locals.get("prep_fn"), frame.f_locals.get("dataset")
        while isinstance(step, functools.partial):
            step = step.func
        name = getattr(step, "__name__", type(step).__name__)
        spec = getattr(dataset, "element_spec", None)
        given = ", ".join(spec) if isinstance(spec, dict) else type(dataset).__name__
        return f"preprocessor {name} (given {given}): "
    return ""


def _is_seqio(frame: FrameType) -> bool:
    """Returns whether SeqIO applies preprocessors in a frame; only the frame tells which one."""
    return frame.f_code.co_name == "_preprocess_dataset"
