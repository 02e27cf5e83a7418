"""Records of an export: images with their masks, and the provenance of each mask."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

from backend.core.types import Json, Mask


@dataclass(frozen=True)
class Provenance:
    """The origin of a mask; what is not known is None.

    Attributes:
        source: what it is a region of in Label Studio.
        source_id: id of that annotation or prediction.
        region_id: Label Studio's.
        origin: "manual", "prediction" or "prediction-changed", as the region says.
        annotator: id of the user in Label Studio who completed the annotation.
        score: of the region, else of its prediction.
        model_version: of the prediction.
        reference_ids: this backend's references: those made of this annotation and label; for a prediction those it
            was made with, where its model_version shows that they are the project's present ones.
        created_at: of the annotation or prediction, as Label Studio writes it.
        updated_at: likewise.
    """

    source: Literal["annotation", "prediction"]
    source_id: int
    region_id: str
    origin: str
    annotator: int | None
    score: float | None
    model_version: str | None
    reference_ids: tuple[int, ...]
    created_at: str | None
    updated_at: str | None

    def to_json(self) -> Json:
        """Return all of it, in this order."""
        return {**asdict(self), "reference_ids": list(self.reference_ids)}


@dataclass(frozen=True, eq=False)
class MaskRecord:
    """One object.

    Attributes:
        id: from 1, unique in the data set.
        label: as results carry it.
        mask: (H, W) bool at the image's natural size, with at least one pixel.
    """

    id: int
    label: str
    mask: Mask
    provenance: Provenance


@dataclass(frozen=True, eq=False)
class ImageFile:
    """An image that was read.

    Attributes:
        sha256: of the file behind the address: of what split and identity follow from.
        size_hw: upright.
        extension: with its dot, of `stored`.
        stored_sha256: of the file that goes into the data set: the one behind the address, or a PNG of it where readers
            would not agree about that one (`image_files.read_image`).
        stored: that file; None if an interrupted run has put it there already.
    """

    sha256: str
    size_hw: tuple[int, int]
    extension: str
    stored_sha256: str
    stored: bytes | None


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image of one task.

    Attributes:
        id: unique in the data set, and the same when tasks are added.
        file_name: in the data set, without folders.
        address: as in task data.
        masks: in Label Studio's order; () where someone said that there is nothing.
        read: the file's bytes.
    """

    id: int
    task_id: int
    file_name: str
    address: str
    file: ImageFile
    split: str
    masks: tuple[MaskRecord, ...]
    read: Callable[[], bytes]

    @property
    def stem(self) -> str:
        """Return the file name without its ending."""
        return self.file_name.rpartition(".")[0]


@dataclass(frozen=True)
class LeftOut:
    """Something that is not in the data set, and why.

    Attributes:
        kind: for counting.
        message: with the details.
    """

    task_id: int
    kind: str
    message: str

    @property
    def is_problem(self) -> bool:
        """Return whether it is a fault, and not what the options ask for."""
        return self.kind.startswith(("image", "region", "mask"))
