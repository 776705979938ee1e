"""Log records on standard error, as text or as one JSON object a line."""

import json
import logging
import sys
from typing import Literal

Level = Literal["quiet", "normal", "verbose"]

_LEVELS = {"quiet": logging.WARNING, "normal": logging.INFO, "verbose": logging.DEBUG}
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class JsonFormatter(logging.Formatter):
    """Formatter of records as JSON objects: time, level, logger, message and fields of `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns one line; a traceback is a field."""
        data = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{key: value for key, value in vars(record).items() if key not in _STANDARD},
        }
        if record.exc_info:
            data["traceback"] = self.formatException(record.exc_info)
        return json.dumps(data, ensure_ascii=False, default=str)


def set_up(level: Level, *, as_json: bool = False) -> None:
    """Sends our log records to standard error, and warnings and errors of other packages."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
    handler.setFormatter(JsonFormatter() if as_json else text)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    # Orbax logs each error that it raises with its stack
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("speechlm").setLevel(_LEVELS[level])
