"""Jobs: the queue, the functions that workers run, the workers."""

from collections.abc import Callable
from typing import Any

_FORMER_NAMES = {
    "take_in_annotation": "ingest_annotation",
    "reconcile": "reconcile",
    "refresh_project": "refresh_project",
    "plan_propagation": "plan_propagation",
    "propagate": "propagate",
    "tidy_propagation": "tidy_propagation",
    "estimate_quality": "estimate_quality",
}
"""Functions of `tasks` by the names under which release 0.1 queued them here: jobs that wait when it is updated still
run. To be removed with release 0.3."""


def __getattr__(name: str) -> Callable[..., dict[str, Any]]:
    if name not in _FORMER_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from backend.jobs import tasks

    function: Callable[..., dict[str, Any]] = getattr(tasks, _FORMER_NAMES[name])
    return function
