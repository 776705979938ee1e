"""The console script: runs the chosen sub-command and turns errors into exit codes."""

import argparse
import difflib
import errno
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from speechlm_jax import __version__, shipped
from speechlm_jax.cli import logs, options
from speechlm_jax.errors import (
    EXIT_INTERRUPTED,
    EXIT_NO_READER,
    EXIT_STOPPED,
    EXIT_USAGE,
    Stopped,
    UserError,
    one_line,
)

MALLOC = "GLIBC_TUNABLES"  # other C libraries ignore it
LARGE_PAGES = "glibc.malloc.hugetlb=1"
_HINTS = {
    errno.ENOSPC: "make room, then run it again",
    errno.EDQUOT: "make room, then run it again",
    errno.ENOENT: "correct the path",
    errno.ENOTDIR: "a folder above it is a file; correct the path",
    errno.EISDIR: "give a file",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.EACCES: "allow it, or give another path",
    errno.EPERM: "allow it, or give another path",
    errno.EROFS: "give a path that can be written",
}
_log = logging.getLogger("speechlm")


def entry() -> None:
    """Runs `main` with large memory pages (the entry point of the console script).

    A step on a CPU allocates and frees hundreds of megabytes; with pages of 4 KiB, page faults take
    a third of its time on some machines (docs/log.md). The C library reads the setting when a
    process starts, so the process executes itself again; its children inherit the setting.
    """
    if sys.platform == "linux" and MALLOC not in os.environ:
        os.environ[MALLOC] = LARGE_PAGES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `speechlm ARGUMENTS` and returns its exit code (speechlm_jax/errors.py lists them).

    An exception that is a bug of this package is not caught: Python shows its traceback and exits
    with code 1.
    """
    # TensorFlow reads this at its import; its start-up messages would hide our lines.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    argv = sys.argv[1:] if argv is None else argv
    as_json = "--log-json" in argv
    logs.set_up("normal", as_json=as_json)
    try:
        return _run(argv, as_json=as_json)
    except UserError as error:
        return _leave(EXIT_USAGE, "error", str(error), as_json=as_json)
    except Stopped as stopped:
        message = str(stopped) or "everything is saved; the same command continues"
        return _leave(EXIT_STOPPED, "stopped", message, as_json=as_json)
    except BrokenPipeError as error:
        if error.filename is not None or _has_reader():
            raise
        return EXIT_NO_READER
    except OSError as error:
        message = _of_system(error)
        if message is None:
            raise
        _log.debug("%s", message, exc_info=True)
        return _leave(EXIT_USAGE, "error", message, as_json=as_json)
    except KeyboardInterrupt:
        return _leave(
            EXIT_INTERRUPTED,
            "interrupted",
            "what was under way is left as it is; run it again",
            as_json=as_json,
        )


def _run(argv: Sequence[str], *, as_json: bool) -> int:
    """Checks the arguments, imports the user's modules, and then runs the command."""
    try:
        arguments = parse(argv)
    except SystemExit:  # raised by --help and --version
        sys.stdout.flush()
        raise
    logs.set_up(_level(arguments), as_json=as_json)
    for name in arguments.module:
        shipped.find_module(name)
    arguments.check(arguments)
    for name in arguments.module:
        shipped.import_module(name)
    code = arguments.run(arguments)
    sys.stdout.flush()  # so that `main` can handle a BrokenPipeError
    return code


def _has_reader() -> bool:
    """Returns whether standard output still has a reader; if not, sends it to the null device."""
    try:
        print(end="", flush=True)
        return True
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False


def _of_system(error: OSError) -> str | None:
    """Returns the operating system's error and its file as a message with a hint.

    Returns None if the error has no file, unless the disk is full or the quota is exceeded.
    """
    if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    hint = _HINTS.get(error.errno or 0)
    return f"{error.filename or 'writing'}: {error.strerror}" + (f"; {hint}" if hint else "")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command line; imports only the module of the chosen sub-command.

    Raises:
      UserError: the command line is wrong; for an unknown sub-command, the message suggests the
        nearest one.
    """
    for text in argv:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"{text}: is not UTF-8; rename the file, or set a locale of UTF-8")
    command = argv[0] if argv else None
    parser = options.Parser(
        prog="speechlm",
        description="Train and use speech-text language models, in JAX.",
        epilog="`speechlm COMMAND --help` shows a command's options and an example",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=20),
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"speechlm_jax {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary in options.COMMANDS.items():
        if name == command:
            importlib.import_module(f"speechlm_jax.cli.{name}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    if command is not None and command not in options.COMMANDS and not command.startswith("-"):
        near = difflib.get_close_matches(command, options.COMMANDS, n=1, cutoff=0.0)[0]
        raise UserError(f"unknown command '{command}'; did you mean '{near}'?")
    arguments, unread = parser.parse_known_args(argv)
    _take_more(arguments, unread)
    return arguments


def _take_more(arguments: argparse.Namespace, unread: list[str]) -> None:
    """Adds arguments after an option to the command's list; argparse reads only those before it."""
    listed = getattr(arguments, "more", None)
    strange = [text for text in unread if listed is None or text.startswith("-")]
    if strange:
        raise UserError(f"unknown argument '{strange[0]}'; see `speechlm --help`")
    if listed is not None:
        getattr(arguments, listed).extend(unread)


def _leave(code: int, why: str, message: str, *, as_json: bool) -> int:
    """Writes one line on why the command ends, and returns the exit code."""
    message = one_line(message)
    if as_json:
        _log.error(message, extra={"why": why, "exit_code": code})
    else:
        print(f"speechlm: {why}: {message}", file=sys.stderr)
    return code


def _level(arguments: argparse.Namespace) -> logs.Level:
    if arguments.quiet:
        return "quiet"
    return "verbose" if arguments.verbose else "normal"


if __name__ == "__main__":
    entry()
