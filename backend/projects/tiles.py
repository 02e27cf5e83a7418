"""Tiles of the project's page: outlines in place of masks, and how far they changed."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from backend.core.masks import iou
from backend.core.task_selection import sketch_features
from backend.core.types import BoxedMask, EncodedImage, Json, LabelMask, Mask
from backend.drawing.outline_path import grid_size, mask_to_path, path_to_mask
from backend.errors import NotFoundError, StoreUnavailableError
from backend.labelstudio.codec import read_regions
from backend.labelstudio.label_config import LabelConfig
from backend.store import Store
from backend.store.records import ProjectKey, TilePrediction, TileRegion, UnwrittenPrediction

logger = logging.getLogger(__name__)

MOST_REGIONS = 24
"""Regions of a prediction that a tile draws, the surest ones: bounds what the store keeps of a task."""
_SIGNED_BYTES = 8


@dataclass(frozen=True)
class DrawnMasks:
    """The masks of a task as its tile draws them.

    Attributes:
        image_tag: of the image that the tile shows: the first one with masks.
        size_hw: natural size of that image, px; (0, 0) without masks.
        regions: on that image.
        certainty: lowest score of the task's regions; without any, the probability that this is right.
        sketch: of the task's first image, see `pack_sketch`; None if its features were not read.
    """

    image_tag: str = ""
    size_hw: tuple[int, int] = (0, 0)
    regions: tuple[TileRegion, ...] = ()
    certainty: float = 1.0
    sketch: bytes | None = None


def draw_masks(found: Mapping[str, Sequence[LabelMask]], *, absence: float = 1.0) -> DrawnMasks:
    """Return what a tile draws of a task's masks.

    Args:
        found: image tag -> masks at the image's natural size.
        absence: probability that nothing is there.
    """
    shown = next((tag for tag, masks in found.items() if masks), None)
    if shown is None:
        return DrawnMasks(next(iter(found), ""), certainty=absence)
    surest = sorted(found[shown], key=lambda one: -one.score)[:MOST_REGIONS]
    height, width = surest[0].boxed.size_hw
    regions = tuple(TileRegion(one.label, one.score, mask_to_path(one.boxed)) for one in surest)
    lowest = min(one.score for masks in found.values() for one in masks)
    return DrawnMasks(shown, (height, width), regions, lowest)


def pack_sketch(encoded: EncodedImage) -> bytes:
    """Return what the store keeps of an image's features: which models made them, and `sketch_features`."""
    return _made_by(encoded.signature) + sketch_features(encoded.features).astype(np.float16).tobytes()


def unpack_sketch(sketch: bytes | None, signature: str) -> NDArray[np.float32] | None:
    """Return the vector that `pack_sketch` packed; None if there is none of these models."""
    if sketch is None or not sketch.startswith(_made_by(signature)):
        return None
    return np.frombuffer(sketch[_SIGNED_BYTES:], np.float16).astype(np.float32)


def _made_by(signature: str) -> bytes:
    return hashlib.sha256(signature.encode()).digest()[:_SIGNED_BYTES]


class Tiles:
    """Keeps the tiles of tasks up to date. Nothing that goes wrong here keeps a prediction from being written."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def note(
        self,
        project_key: ProjectKey,
        version: str,
        task_id: int,
        drawn: DrawnMasks,
        score: float | None,
        unwritten: UnwrittenPrediction | None = None,
        known: Mapping[int, TilePrediction] | None = None,
    ) -> None:
        """Remember the prediction of a task that Label Studio will have, and keep it until then if that is later.

        Args:
            project_key: of the task.
            version: model_version of the prediction.
            task_id: of the task.
            drawn: what its tile shows.
            score: of the prediction; None without masks.
            unwritten: the prediction, if it is to be kept.
            known: task id -> tile, as they were a moment ago; None: they are read.
        """
        state = "masks" if drawn.regions else "empty"
        made = TilePrediction(
            task_id, state, version, drawn.regions, score=score or 0.0, certainty=drawn.certainty,
            image_tag=drawn.image_tag, size_hw=drawn.size_hw, sketch=drawn.sketch,
        )  # fmt: skip
        self._save(project_key, made, [unwritten] if unwritten is not None else [], known)

    def of_tasks(self, project_key: ProjectKey, task_ids: Sequence[int]) -> Mapping[int, TilePrediction]:
        """Return the tiles that tasks have, for `note`."""
        return self._store.tiles.of_tasks(project_key, task_ids)

    def note_failure(self, project_key: ProjectKey, version: str, task_id: int, reason: str) -> None:
        """Remember why a task could not be predicted; the masks that it had before are not shown any more."""
        self._save(
            project_key,
            TilePrediction(task_id, "failed", version, score=-1.0, certainty=2.0, reason=reason[:500], is_written=True),
        )

    def note_written(self, project_key: ProjectKey, version: str, task_ids: Sequence[int]) -> None:
        """Note that Label Studio has the predictions of tasks."""
        if task_ids:
            try:
                self._store.tiles.note_written(project_key, task_ids, version)
            except StoreUnavailableError as error:
                logger.warning("project=%s tiles: %s", project_key, error)

    def note_kept(
        self, project_key: ProjectKey, config: LabelConfig, version: str, predictions: Mapping[int, Json]
    ) -> None:
        """Remember predictions that Label Studio had already, of tasks whose tile is not of them."""
        known = self._store.tiles.versions(project_key, list(predictions))
        for task_id, prediction in predictions.items():
            if known.get(task_id) == version:
                continue
            read = read_regions(list(prediction.get("result") or []), config).regions
            found: dict[str, list[LabelMask]] = {}
            for region in read:
                if region.mask is not None:
                    found.setdefault(region.to_name, []).append(
                        LabelMask(region.label, BoxedMask.of(region.mask), region.score or 0.0)
                    )
            score = prediction.get("score")
            certainty = float(score) if score is not None else 1.0
            drawn = draw_masks(found, absence=certainty)
            self.note(project_key, version, task_id, drawn, certainty if drawn.regions else None)
        self.note_written(project_key, version, list(predictions))

    def _save(
        self,
        project_key: ProjectKey,
        tile: TilePrediction,
        unwritten: Sequence[UnwrittenPrediction] = (),
        tiles: Mapping[int, TilePrediction] | None = None,
    ) -> None:
        try:
            tiles = self._store.tiles.of_tasks(project_key, [tile.task_id]) if tiles is None else tiles
            known = tiles.get(tile.task_id)
            if known is not None and tile.sketch is None:
                tile = replace(tile, sketch=known.sketch)
            if known is not None and known.model_version == tile.model_version and known.state == tile.state:
                # Made anew with the same references: what came before is still what it was.
                tile = replace(tile, change=known.change, before=known.before)
            elif known is not None:
                tile = replace(tile, change=change_between(known, tile), before=known.regions)
            self._store.tiles.save(project_key, [tile], unwritten)
        except (NotFoundError, StoreUnavailableError) as error:
            logger.warning("project=%s task=%d tile: %s", project_key, tile.task_id, error)


def change_between(before: TilePrediction, after: TilePrediction) -> float:
    """Return 1 - IoU of the masks of two predictions, the mean over the labels of both; 0 if neither has any."""
    size_hw = after.size_hw if after.regions else before.size_hw
    labels = sorted({region.label for region in (*before.regions, *after.regions)})
    if not labels or "failed" in (before.state, after.state):
        return 0.0
    ious = [iou(_area(before.regions, label, size_hw), _area(after.regions, label, size_hw)) for label in labels]
    return round(1.0 - sum(ious) / len(ious), 4)


def _area(regions: Sequence[TileRegion], label: str, size_hw: tuple[int, int]) -> Mask:
    area: Mask = np.zeros(grid_size(size_hw), np.bool_)
    for region in regions:
        if region.label == label:
            area |= path_to_mask(region.path, size_hw)
    return area
