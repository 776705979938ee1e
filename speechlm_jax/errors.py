"""The exception for errors that the user can mend, and the exit codes of every command."""

EXIT_OK = 0
EXIT_BUG = 1  # an exception of ours: the traceback is shown
EXIT_USAGE = 2  # bad input or usage: one line says which file or field, and what to do
EXIT_DOES_NOT_FIT = 3  # `plan`: the training does not fit the slice
EXIT_STOPPED = 75  # stopped by SIGINT or SIGTERM after saving; the same command continues
EXIT_INTERRUPTED = 130  # stopped by SIGINT where there was nothing to save
EXIT_NO_READER = 141  # the reader of its output has gone, as after `| head`


MOST_SAID = 1000  # characters of a message; a name or a number in it may be longer


class UserError(Exception):
    """An error that the user can mend.

    The message is one line: it names the file or the field, what is wrong with it, and what to do.
    The command line prints it without a traceback and exits with `EXIT_USAGE`.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


def one_line(message: str) -> str:
    """Returns a message with line ends and other controls escaped; shortens a long one."""
    if not message.isprintable():
        shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        message = "".join(shown)
    half = MOST_SAID // 2
    return message if len(message) <= MOST_SAID else f"{message[:half]} [...] {message[-half:]}"


class Stopped(Exception):
    """Raised after SIGINT or SIGTERM, once everything is saved; maps to `EXIT_STOPPED`."""
