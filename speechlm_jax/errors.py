"""The one exception that is the user's to mend, and the exit codes of every command."""

EXIT_OK = 0
EXIT_BUG = 1  # an exception of ours: the traceback is shown
EXIT_USAGE = 2  # bad input or usage: one line says which file or field, and what to do
EXIT_DOES_NOT_FIT = 3  # `plan`: the training does not fit the slice
EXIT_STOPPED = 75  # stopped by SIGINT or SIGTERM after saving; the same command continues
EXIT_INTERRUPTED = 130  # stopped by SIGINT where there was nothing to save
EXIT_NO_READER = 141  # who read its output has gone, as after `| head`


class UserError(Exception):
    """Something the user can mend.

    The message is one line: it names the file or the field, says what is wrong with it, and what
    to do. The command line prints it without a traceback and exits with `EXIT_USAGE`.
    """


class Stopped(Exception):
    """Raised after SIGINT or SIGTERM, once everything is saved; maps to `EXIT_STOPPED`."""
