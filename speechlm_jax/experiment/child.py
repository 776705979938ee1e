"""One training run in its own process, which ends when the process that started it ends.

Usage: python -m speechlm_jax.experiment.child CONFIG.json WORKDIR

Its standard input is the parent's pipe.
"""

import logging
import os
import sys
import threading

from speechlm_jax.errors import EXIT_OK, EXIT_STOPPED, EXIT_USAGE, Stopped, UserError
from speechlm_jax.experiment import training


def main(config: str, workdir: str) -> int:
    """Trains an experiment and returns an exit code, with the meaning it has for every command."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        training.train(config, workdir=workdir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except Stopped:
        return EXIT_STOPPED
    return EXIT_OK


def _end_with_parent() -> None:
    # The pipe closes when the parent ends, however it ended; two writers would damage a workdir.
    while os.read(0, 4096):
        pass
    os._exit(EXIT_STOPPED)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
