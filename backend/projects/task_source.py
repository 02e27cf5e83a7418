"""Where the tasks of a project's page come from: Label Studio, or anything else that has images."""

from dataclasses import dataclass
from typing import Protocol

from backend.core.types import Image
from backend.labelstudio.label_config import parse_label_config
from backend.projects.connections import Connections
from backend.projects.images import TaskImages
from backend.store import ProjectRecord


@dataclass(frozen=True)
class TaskIds:
    """A page of tasks.

    Attributes:
        ids: in their order.
        left: how many follow them.
    """

    ids: tuple[int, ...]
    left: int


class TaskSource(Protocol):
    """Tasks in the order of their ids, and their images."""

    def page(self, *, after: int, count: int) -> TaskIds:
        """Return up to `count` tasks that follow one.

        Raises:
            LabelStudioError: it cannot be asked now.
        """
        ...

    def picture(self, task_id: int, image_tag: str) -> Image:
        """Return an image of a task, (H, W, 3) uint8.

        Args:
            task_id: of the task.
            image_tag: which of its images; "" for the first.

        Raises:
            NotFoundError, BadInputError, LabelStudioError: it cannot be had; the message says why.
        """
        ...

    def address(self, task_id: int) -> str | None:
        """Return where a person opens the task; None if nowhere."""
        ...


class LabelStudioTasks:
    """The tasks of a project of Label Studio."""

    def __init__(self, project: ProjectRecord, connections: Connections, images: TaskImages, url: str) -> None:
        self._project = project
        self._connections = connections
        self._images = images
        self._url = url

    def page(self, *, after: int, count: int) -> TaskIds:
        """Return up to `count` tasks that follow one: one request, whatever the project's size."""
        client = self._connections.client(self._project.key)
        ids, total = client.page_of_tasks(self._project.project_id, after=after, count=count)
        return TaskIds(tuple(ids), max(0, total - len(ids)))

    def picture(self, task_id: int, image_tag: str) -> Image:
        """Return an image of a task, (H, W, 3) uint8."""
        config = parse_label_config(self._project.label_config)
        tag = config.image(image_tag) if image_tag else config.images[0]
        task = self._connections.client(self._project.key).task(task_id, self._project.project_id)
        return self._images.picture(task, tag, self._connections.fetcher(self._project.key))

    def address(self, task_id: int) -> str | None:
        """Return the address of the task in Label Studio's Data Manager."""
        return f"{self._url}/projects/{self._project.project_id}/data?task={task_id}"


def browser_address(project: ProjectRecord, fallback: str) -> str:
    """Return the address by which people's browsers reach Label Studio: what it calls itself."""
    hostname = (project.settings or {}).get("hostname")
    is_address = isinstance(hostname, str) and hostname.startswith(("http://", "https://"))
    return str(hostname).rstrip("/") if is_address else fallback
