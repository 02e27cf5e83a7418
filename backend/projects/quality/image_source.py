"""The pixels and features of annotated images."""

import logging
from dataclasses import replace

from backend.core.types import EncodedImage, Image
from backend.errors import BadInputError, LabelStudioError, LabelStudioUnavailableError, NotFoundError
from backend.labelstudio.label_config import LabelConfig
from backend.projects.connections import Connections
from backend.projects.images import TaskImage, TaskImages
from backend.projects.quality.annotated_images import AnnotatedImage
from backend.store import ProjectRecord

logger = logging.getLogger(__name__)


class AnnotatedImageSource:
    """Loads annotated images; one that cannot be had is logged and left out, unless Label Studio is away."""

    def __init__(
        self, connections: Connections, images: TaskImages, project: ProjectRecord, config: LabelConfig
    ) -> None:
        self._client = connections.client(project.key)
        self._fetcher = connections.fetcher(project.key)
        self._images = images
        self._project = project
        self._config = config

    def load(self, image: AnnotatedImage) -> tuple[AnnotatedImage, EncodedImage] | None:
        """Return an image with its features, and with the sha256 of its file if that was not known.

        None if it cannot be had, or is another one than was annotated.

        Raises:
            LabelStudioUnavailableError: Label Studio does not answer.
            ModelUnavailableError: no models.
        """
        loaded = self._load(image, with_pixels=False)
        if loaded is None:
            return None
        return replace(image, image_sha256=loaded.sha256), loaded.encoded

    def pixels(self, image: AnnotatedImage) -> Image | None:
        """Return the pixels of an image, (H, W, 3) uint8, under the conditions of `load`."""
        loaded = self._load(image, with_pixels=True)
        return loaded.pixels if loaded is not None else None

    def _load(self, image: AnnotatedImage, *, with_pixels: bool) -> TaskImage | None:
        try:
            (task,) = self._client.tasks_of(self._project.project_id, [image.task_id]) or (None,)
            if task is None:
                return None
            tag = self._config.image(image.image_tag)
            loaded = self._images.load(task, tag, self._fetcher, is_interactive=False, with_pixels=with_pixels)
        except LabelStudioUnavailableError:
            self._client.version()  # raises if it is all of Label Studio
            return None
        except (BadInputError, NotFoundError, LabelStudioError) as error:
            logger.warning("project=%s task=%d is not tried: %s", self._project.key, image.task_id, error)
            return None
        if image.image_sha256 and loaded.sha256 != image.image_sha256:
            logger.warning("project=%s task=%d is not tried: another image", self._project.key, image.task_id)
            return None
        return loaded
