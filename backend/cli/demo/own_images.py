"""A project of the user's own images in the demo's Label Studio, connected and ready to be marked."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

from backend.cli.demo.label_studio_server import LabelStudio
from backend.errors import BadInputError, LabelStudioError, LabelStudioUnavailableError, NotFoundError
from backend.labelstudio.sample_label_config import make_label_config
from backend.projects.folder.images import FolderFiles, find_images, name_of

MOST_IMAGES = 200
"""Images that are uploaded: each is a copy in the demo's data folder."""
DEFAULT_LABEL = "Object"
_MOST_BYTES = 100_000_000


@dataclass(frozen=True)
class OwnImages:
    """Images that become a project.

    Attributes:
        folder: of the images.
        labels: of the project.
    """

    folder: Path
    labels: tuple[str, ...]

    def check(self) -> None:
        """Look before anything is started.

        Raises:
            NotFoundError, BadInputError: there is no image, or a label cannot be used.
        """
        find_images(self.folder, most_images=1)
        make_label_config(*self.labels)


def add_own_project(
    own: OwnImages, title: str, label_studio: LabelStudio, service_url: str, tell: Callable[[str], None]
) -> tuple[int, int, list[str]]:
    """Make a project, upload the images, connect the backend.

    Args:
        own: images and labels.
        title: of the project.
        label_studio: where.
        service_url: of the backend.
        tell: is told what is done at the moment.

    Returns:
        The project's id, how many tasks it has, and what was left out, a sentence each.

    Raises:
        NotFoundError, BadInputError: there is no image, or a label cannot be used.
        LabelStudioError: Label Studio refused the project or the backend.
    """
    found = find_images(own.folder, most_images=MOST_IMAGES)
    files = FolderFiles(own.folder, _MOST_BYTES)
    project = label_studio.create_project(title, make_label_config(*own.labels))
    count, left_out = 0, list(found.notes)
    for path in found.paths:
        tell(f"{title}: uploading {count + 1} of {len(found.paths)} images ...")
        name = unquote_to_bytes(path).decode(errors="replace").rpartition("/")[2]
        try:
            label_studio.upload_file(project, name, files.fetch(files.address(path)))
        except LabelStudioUnavailableError:
            raise
        except (BadInputError, NotFoundError, LabelStudioError) as error:
            left_out.append(f"{name_of(path)}: {error}")
            continue
        count += 1
    label_studio.connect_backend(project, service_url)
    return project, count, left_out
