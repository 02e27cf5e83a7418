"""Pauses of a propagation: while Label Studio is away, or asks for time, no job works on it."""

import logging

from backend.errors import LabelStudioUnavailableError, SoftmatcherError
from backend.store import Store
from backend.store.records import PropagationRecord

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S = 5.0
_LONGEST_PAUSE_S = 60.0
_LONGEST_ASKED_FOR_S = 900.0


def is_paused(store: Store, record: PropagationRecord) -> bool:
    """Return whether its pause is not over yet."""
    return record.paused_until is not None and record.paused_until > store.now()


def pause(store: Store, propagation_id: int, error: SoftmatcherError) -> float:
    """Let no job work on it for a while: longer each time, or as long as Label Studio asked for; seconds."""
    asked_for_s = error.retry_after_s if isinstance(error, LabelStudioUnavailableError) else None
    at_least_s = min(asked_for_s or 0.0, _LONGEST_ASKED_FOR_S)
    pause_s = store.propagations.pause(
        propagation_id,
        str(error),
        first_s=max(_FIRST_PAUSE_S, at_least_s),
        at_most_s=max(_LONGEST_PAUSE_S, at_least_s),
    )
    logger.warning("propagation=%d pauses for %.0f s: %s", propagation_id, pause_s, error)
    return pause_s
