"""Projects and propagations that the address of a request names."""

from backend.errors import NotFoundError
from backend.store import ProjectRecord, Store
from backend.store.records import PropagationRecord


def project_of(store: Store, project_id: int) -> ProjectRecord:
    """Return the newest project of Label Studio's id.

    Raises:
        NotFoundError: this backend is not connected to it.
    """
    project = store.project_by_id(project_id)
    if project is None:
        raise NotFoundError(
            f"project {project_id} is not known here: connect this backend to it in Label Studio (Settings > Model)"
        )
    return project


def propagation_of(store: Store, project_id: int, propagation_id: int) -> PropagationRecord:
    """Return a propagation of a project.

    Raises:
        NotFoundError: there is none of that id, or it is of another project.
    """
    record = store.propagations.get(propagation_id)
    if record.project_key != project_of(store, project_id).key:
        raise NotFoundError(f"propagation {propagation_id} is not of project {project_id}")
    return record
