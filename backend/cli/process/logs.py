"""Logging of a process: one line a request or job, to standard error, as text or as JSON."""

import json
import logging
from datetime import UTC, datetime

from backend.settings import Settings

_MOST_CHARACTERS = 8000
"""Most characters of a message: it may repeat what a client sent."""
_CHATTY = ("httpx", "httpcore", "urllib3", "PIL", "rq.worker", "werkzeug")
"""Libraries whose lines show addresses, with whatever is in them."""


class TextLines(logging.Formatter):
    """One line a message, whatever is in it: what a client sent can forge no line. Tracebacks follow on own lines."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the line, with what is not printable escaped."""
        line = super().formatMessage(record)[:_MOST_CHARACTERS]
        if line.isprintable():
            return line
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the figures of a request or job by name."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object, tracebacks included."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage()[:_MOST_CHARACTERS],
        }
        line = getattr(record, "figures", {}) | line
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def start_logging(settings: Settings) -> None:
    """Set up the root logger; chatty libraries stay quiet."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if settings.log_format == "json" else TextLines())
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    # gunicorn brings handlers of its own: its lines shall look like all others, and come once.
    for name in ("gunicorn.error", "gunicorn.access"):
        gunicorn = logging.getLogger(name)
        gunicorn.handlers.clear()
        gunicorn.propagate = True
        gunicorn.setLevel(logging.WARNING)
