"""What goes into the store and comes out: frozen dataclasses."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from backend.core.types import Mask, Reference

Json = dict[str, Any]
"""A JSON object as it came from outside."""


@dataclass(frozen=True)
class ProjectRecord:
    """One Label Studio project as last seen.

    Attributes:
        key: "<id>.<unix time of creation>", as Label Studio sends it.
        project_id: the number before the dot.
        title: None if never told.
        label_config: the XML; "" if never told.
        settings: the backend's extra parameters of this project; None if never told.
        setup_token: the access token that came with /setup; a secret.
        needs_reconcile: True if annotations may exist that were not announced.
        updated_at: unix time in s of the last save.
    """

    key: str
    project_id: int
    title: str | None
    label_config: str
    settings: Json | None
    setup_token: str | None = field(repr=False)
    needs_reconcile: bool
    updated_at: float


@dataclass(frozen=True)
class AnnotationRecord:
    """An annotation that was taken in, also if it gave no reference.

    Attributes:
        updated_at: ISO 8601 as Label Studio gives it; without a zone it is taken as UTC.
        signature: of the models that made its references.
        content_digest: of what the references were made from.
        problem: why it gave no reference or not all; None if nothing is wrong.
    """

    project_key: str
    annotation_id: int
    task_id: int
    updated_at: str
    signature: str
    content_digest: str
    problem: str | None = None


@dataclass(frozen=True, eq=False)
class NewReference:
    """A reference on its way into the store.

    Attributes:
        label: the class.
        image_tag: name of the label config's image tag that shows the image.
        image_sha256: of the image file's bytes.
        mask: (H, W) bool at the image's natural size.
        reference: the features; their signature must be the annotation's.
    """

    label: str
    image_tag: str
    image_sha256: str
    mask: Mask
    reference: Reference

    @property
    def digest(self) -> str:
        """sha256 of what makes two references the same: label, image, mask, models, and what is known around the mask.

        The features themselves are left out. They follow from these, and a GPU does not give them bit for bit twice:
        taking an unchanged annotation in again would otherwise change model_version, and with it every prediction.
        """
        named = [self.reference.signature, self.label, self.image_tag, self.image_sha256, *map(str, self.mask.shape)]
        digest = hashlib.sha256(json.dumps(named).encode())
        digest.update(np.packbits(self.mask).tobytes())
        digest.update(self.reference.inside.tobytes())
        digest.update(self.reference.known.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class StoredReference:
    """A reference out of the store.

    Attributes:
        id: of its row; changes whenever its annotation is taken in again.
        size_hw: natural size of the image.
        mask: (H, W) bool.
        reference: None if features were not asked for.
        digest: see `NewReference.digest`.
        created_at: unix time in s.
    """

    id: int
    project_key: str
    task_id: int
    annotation_id: int
    label: str
    image_tag: str
    image_sha256: str
    size_hw: tuple[int, int]
    mask: Mask
    reference: Reference | None
    digest: str
    created_at: float
