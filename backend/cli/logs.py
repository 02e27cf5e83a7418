"""Logging of a process: one line a request or job, to standard error."""

import logging

from backend.settings import Settings


def start_logging(settings: Settings) -> None:
    """Set up the root logger; libraries that are chatty about requests stay quiet, since their lines show addresses."""
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True)
    for name in ("httpx", "httpcore", "urllib3", "PIL", "rq.worker", "werkzeug"):
        logging.getLogger(name).setLevel(logging.WARNING)
