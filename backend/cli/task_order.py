"""`next`: let Label Studio serve the least certain task first, or restore its former order."""

from rich.console import Console

from backend.cli.propagate import Service, watch
from backend.cli.service_address import service_address
from backend.settings import Settings


def set_task_order(settings: Settings, project: int, *, service: str | None, is_undone: bool, is_watched: bool) -> bool:
    """Set the order through the service, or restore it.

    Returns:
        False if the propagation that writes the scores was watched and did not end as `done`.

    Raises:
        ServiceAwayError: the service does not answer.
        ConflictError, NotFoundError, LabelStudioError: it refuses, with its own words.
    """
    console = Console(highlight=False)
    client = Service(service or service_address(settings), settings)
    path = f"/projects/{project}/next"
    if is_undone:
        now = client.call("POST", f"{path}/undo")
        shown = now["model_version"] or "none chosen"
        console.print(f"project {project}: task sampling is {now['sampling']!r} again, prediction version: {shown}")
        if now.get("problem"):
            console.print(now["problem"], markup=False)
        return True
    status = client.call("POST", path)
    console.print(
        f"propagation {status['id']} writes a score for each task of project {project}; then Label Studio serves the "
        f"least certain one first: {client.url}/projects/{project}?tab=next"
    )
    console.print(f"`python -m backend next --project {project} --undo` restores the former order")
    if not is_watched:
        return True
    return bool(watch(client, f"/projects/{project}/propagations/{status['id']}", console)["state"] == "done")
