"""Forms the name of a project in /setup and /predict, and finds the project of that name."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from backend.errors import BadInputError
from backend.store import ProjectRecord, Store
from backend.store.records import ProjectKey


def key_of_project(project: Mapping[str, Any]) -> ProjectKey:
    """Return `<id>.<unix time of creation>`, as Label Studio names a project in /setup and /predict.

    Raises:
        BadInputError: id or time of creation are missing or no such things.
    """
    project_id, created_at = project.get("id"), project.get("created_at")
    try:
        created = datetime.fromisoformat(str(created_at))
    except ValueError:
        created = None
    if not isinstance(project_id, int) or isinstance(project_id, bool) or created is None or created.tzinfo is None:
        raise BadInputError(
            f'expected a project with "id" (a number) and "created_at" (ISO 8601 with a zone), '
            f"got {project_id!r} and {str(created_at)[:40]!r}"
        )
    return f"{project_id}.{int(created.timestamp())}"


def project_of_request(store: Store, project_key: ProjectKey, label_config: str) -> ProjectRecord:
    """Return the project that a request names; one that this store does not have is made known."""
    project = store.project(project_key)
    if project is None:
        return store.save_project(project_key, label_config=label_config, needs_reconcile=True)
    if project.label_config != label_config:
        return store.save_project(project_key, label_config=label_config, needs_reconcile=True)
    return project
