"""Log lines a person can read and a machine can split: time, level, where, message, fields."""

from __future__ import annotations

import logging
import sys

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
#: What mode's services say of themselves when they start and stop.
_LIFE_LINES = ("Starting...", "Stopping...", "Started.", "-Stopped!", "Shutting down...")
#: Libraries that say at `info` what is news to their developers only.
_QUIET = ("aiokafka", "faust", "mode", "kafka", "asyncio")


class FieldFormatter(logging.Formatter):
    """Appends the fields of `extra` as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        fields = [f"{k}={v}" for k, v in record.__dict__.items() if k not in _STANDARD]
        return " ".join([super().format(record), *fields])


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line says more than that one of mode's services starts or stops."""
    return record.levelno > logging.INFO or not record.getMessage().endswith(_LIFE_LINES)


def set_up_logging(level: str) -> None:
    """Log to standard error from `level` on; libraries from `warning` on, unless it is debug."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FieldFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    if level != "debug":
        handler.addFilter(_is_news)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
