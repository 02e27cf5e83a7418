"""Asks Label Studio for a project, and remembers what it says."""

import logging

from backend.errors import NotFoundError
from backend.projects.connections import Connections
from backend.projects.project_key import key_of_project
from backend.store import ProjectRecord, Store
from backend.store.records import ProjectKey

logger = logging.getLogger(__name__)


def refresh_project(store: Store, connections: Connections, project_key: ProjectKey) -> ProjectRecord:
    """Ask Label Studio for a project, and remember what it says.

    One that Label Studio does not have is marked as gone and keeps its data (`Projects.forget_gone`); its
    unfinished propagations end.

    Raises:
        NotFoundError: Label Studio does not have it, or has another project of its id.
        LabelStudioUnavailableError, LabelStudioError, ConfigurationError: it cannot be asked.
    """
    project_id = int(project_key.split(".")[0])
    try:
        project = connections.client(project_key).project(project_id)
        if key_of_project(project) != project_key:
            raise NotFoundError(f"Label Studio has another project of the id {project_id} than {project_key}")
    except NotFoundError as error:
        if store.mark_gone(project_key, f"Label Studio does not have the project (any more): {error}"):
            logger.warning("project=%s is gone from Label Studio; its data is kept for now: %s", project_key, error)
        raise
    store.mark_present(project_key)
    return store.save_project(
        project_key, title=str(project.get("title", "")), label_config=str(project.get("label_config", ""))
    )
