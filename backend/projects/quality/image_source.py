"""The pixels and features of annotated images."""

import logging
from dataclasses import dataclass, replace

from backend.core.types import EncodedImage, Image
from backend.engine.refiner_training import ReferenceImage
from backend.engine.softmatcher import Softmatcher
from backend.errors import BadInputError, LabelStudioError, LabelStudioUnavailableError, NotFoundError
from backend.labelstudio.label_config import LabelConfig
from backend.projects.connections import Connections
from backend.projects.images import TaskImage, TaskImages
from backend.projects.quality.annotated_images import AnnotatedImage
from backend.store import ProjectRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """An annotated image with its features.

    Attributes:
        image: with the sha256 of its file, also if that was not known.
        encoded: its features.
        pixels: (H, W, 3) uint8; None if they were not asked for.
    """

    image: AnnotatedImage
    encoded: EncodedImage
    pixels: Image | None


class AnnotatedImageSource:
    """Loads annotated images; one that cannot be had is logged and left out, unless Label Studio is away.

    Args:
        connections: to the project's Label Studio.
        images: loads and encodes.
        project: whose images these are.
        config: its label config.
        fine_by: adds fine features to what `load` returns, for references of thin things; None: nothing does.
    """

    def __init__(
        self,
        connections: Connections,
        images: TaskImages,
        project: ProjectRecord,
        config: LabelConfig,
        *,
        fine_by: Softmatcher | None = None,
    ) -> None:
        self._client = connections.client(project.key)
        self._fetcher = connections.fetcher(project.key)
        self._images = images
        self._project = project
        self._config = config
        self._fine_by = fine_by

    def load(self, image: AnnotatedImage, *, with_pixels: bool = False) -> LoadedImage | None:
        """Return an image with its features.

        None if it cannot be had, or is another one than was annotated.

        Raises:
            LabelStudioUnavailableError: Label Studio does not answer.
            ModelUnavailableError: no models.
        """
        loaded = self._load(image, with_pixels=with_pixels or self._fine_by is not None)
        if loaded is None:
            return None
        encoded = loaded.encoded
        if self._fine_by is not None and loaded.pixels is not None:
            encoded = self._fine_by.add_fine_features(encoded, loaded.pixels)
        return LoadedImage(replace(image, image_sha256=loaded.sha256), encoded, loaded.pixels)

    def pixels(self, image: AnnotatedImage) -> Image | None:
        """Return the pixels of an image, (H, W, 3) uint8, under the conditions of `load`."""
        loaded = self._load(image, with_pixels=True)
        return loaded.pixels if loaded is not None else None

    def marked(self, image: AnnotatedImage, label: str) -> ReferenceImage | None:
        """Return an image with the mask of a label, for training, under the conditions of `load`."""
        loaded, mask = self._load(image, with_pixels=True), image.masks[label]
        if loaded is None or loaded.pixels is None or loaded.pixels.shape[:2] != mask.shape:
            return None
        return ReferenceImage(loaded.pixels, loaded.encoded, mask)

    def _load(self, image: AnnotatedImage, *, with_pixels: bool) -> TaskImage | None:
        try:
            (task,) = self._client.tasks_of(self._project.project_id, [image.task_id]) or (None,)
            if task is None:
                return None
            tag = self._config.image(image.image_tag)
            loaded = self._images.load(
                task, tag, self._fetcher, is_interactive=False, with_pixels=with_pixels,
                with_text=self._project.with_text,
            )  # fmt: skip
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
