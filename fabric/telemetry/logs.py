"""Logging for processes of our own: one line a record, on stderr. Prompts are never logged."""

import json as json_
import logging
from datetime import UTC, datetime


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: time, level, logger, message, and the trace if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json_.dumps(line, ensure_ascii=False)


class LineFormatter(logging.Formatter):
    """A record as one line for people; the ends of lines within it are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        return super().format(record).replace("\n", "\\n")


def setup_logging(level: str, *, json: bool = False) -> None:
    """Send this process's records to stderr; for entry points only, never for libraries.

    Args:
        level: Such as "INFO".
        json: One JSON object a line, for machines.
    """
    handler = logging.StreamHandler()
    plain = LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if json else plain)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
