"""The images of an annotation: loaded, or asked whether they are still the same."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from backend.core.types import Json
from backend.errors import (
    BadInputError,
    LabelStudioError,
    LabelStudioUnavailableError,
    NotFoundError,
    SoftmatcherError,
)
from backend.labelstudio.codec import is_mark
from backend.labelstudio.label_config import ImageTag, LabelConfig, parse_label_config
from backend.projects.connections import Connections
from backend.projects.images import TaskImage, TaskImages, versions_from_json
from backend.store import AnnotationRecord, ProjectRecord

ImagesFound = Literal["changed", "unchanged"] | SoftmatcherError


class AnnotationImages:
    """Loads the images that annotations have regions on."""

    def __init__(self, connections: Connections, images: TaskImages) -> None:
        self._connections = connections
        self._images = images

    def load(
        self,
        project: ProjectRecord,
        config: LabelConfig,
        task: Mapping[str, Any],
        result: Sequence[object],
        absent_labels: Collection[str] = (),
    ) -> tuple[dict[str, TaskImage], dict[str, SoftmatcherError]]:
        """Load the images that a result has regions on, or that labels are absent from; each stands alone.

        Returns:
            The images by tag name, and what is wrong with those that cannot be had.

        Raises:
            LabelStudioUnavailableError: Label Studio does not answer; one host of images that does not is a problem.
        """
        fetcher = self._connections.fetcher(project.key)
        images: dict[str, TaskImage] = {}
        unread: dict[str, SoftmatcherError] = {}
        for tag in _images_shown(config, task, result, absent_labels):
            try:
                images[tag.name] = self._images.load(
                    task, tag, fetcher, is_interactive=False, with_pixels=True, with_text=project.with_text
                )
            except (BadInputError, NotFoundError, LabelStudioError) as error:
                if isinstance(error, LabelStudioUnavailableError):
                    self._connections.client(project.key).version()
                unread[tag.name] = error
        return images, unread

    def look_for_changes(self, project: ProjectRecord, task: Json, record: AnnotationRecord) -> ImagesFound:
        """Find out whether the images that the references of an annotation were made of are still the same."""
        config, fetcher = parse_label_config(project.label_config), self._connections.fetcher(project.key)
        for tag_name, version in versions_from_json(record.images).items():
            try:
                if not self._images.is_unchanged(task, config.image(tag_name), fetcher, version):
                    return "changed"
            except (BadInputError, NotFoundError, LabelStudioError) as error:
                return error
        return "unchanged"


def _images_shown(
    config: LabelConfig, task: Mapping[str, Any], result: Sequence[object], absent_labels: Collection[str]
) -> list[ImageTag]:
    """Return the images that regions of a result are on, and those of the task that absent labels have.

    Text and choices of an image need no image.
    """
    named = {str(region.get("to_name")) for region in result if isinstance(region, Mapping) and is_mark(region)}
    named |= {
        brush.to_name
        for brush in config.brushes
        if not set(absent_labels).isdisjoint(brush.labels) and config.image(brush.to_name).is_in(task.get("data") or {})
    }
    return [tag for tag in config.images if tag.name in named]
