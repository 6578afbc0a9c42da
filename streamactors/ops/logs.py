"""How a process writes its log lines: as text for people, or as JSON, one object a line.

Only the command line uses this. The library itself sets up no handler: it logs to loggers of ``logging`` and leaves the
rest to the program that it is embedded in.
"""

from __future__ import annotations

import json
import logging
import time

FORMATS = ("text", "json")


class JsonLines(logging.Formatter):
    """time, level, logger, message; and the traceback, where there is one."""

    converter = time.gmtime  # type: ignore[assignment]  # typeshed takes it for a method
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        line = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def formatter(name: str) -> logging.Formatter:
    """Return the formatter called *name*. Times are UTC."""
    if name == "json":
        return JsonLines()
    text = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    text.converter = time.gmtime
    return text
