"""The best, the worst and the median targets of an evaluation as pictures: a reference, the target, what was found."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from backend.core.types import Image, Mask
from backend.drawing.overlay import draw_overlay
from backend.engine.options import MatchOptions
from backend.engine.softmatcher import Softmatcher
from backend.evaluation.datasets import draw_episode, find_classes, read_image, read_mask
from backend.evaluation.results import EvaluationResult, TargetScore

_TILE_PX, _GAP_PX, _CAPTION_PX, _COLUMNS = 220, 10, 22, 2
_TRUTH, _FOUND = (30, 200, 60), (230, 40, 40)


def draw_contact_sheets(
    directory: Path,
    result: EvaluationResult,
    engine: Softmatcher,
    options: MatchOptions,
    folder: Path,
    *,
    shots: int,
    limit: int | None = None,
    is_complete: bool = True,
    count: int = 12,
) -> list[Path]:
    """Write `best.png`, `median.png` and `worst.png`: `count` targets each, of distinct classes where there are enough.

    A green line is the data set's mask, a red area what was found.

    Args:
        directory: of the run.
        result: of the run.
        engine: it was run with.
        options: it was run with.
        folder: is made.
        shots: of the run.
        limit: of the run.
        is_complete: of the run.
        count: targets on each sheet.
    """
    classes = {one.name: one for one in find_classes(directory)}
    targets = sorted((one for scores in result.classes.values() for one in scores), key=lambda one: one.iou)
    middle = len(targets) // 2
    by_distance = sorted(range(len(targets)), key=lambda index: abs(index - middle))
    orders = {"best": targets[::-1], "median": [targets[index] for index in by_distance], "worst": targets}
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, order in orders.items():
        tiles = []
        for one in _of_distinct_classes(order, count):
            owner = classes[one.target.rpartition("/")[0]]
            episode = draw_episode(owner, shots=shots, seed=one.seed, limit=limit)
            references = []
            for path in episode.references:
                image = read_image(path)
                mask = read_mask(path)
                references.append(engine.describe(image, engine.encode(image), mask, is_complete=is_complete))
            path = owner.images[0].parent / one.target.rpartition("/")[2]
            target = read_image(path)
            found = engine.segment(engine.encode(target), {owner.class_name: references}, options, pixels=target)
            mask = np.zeros(target.shape[:2], bool)
            for region in found:
                mask |= region.mask
            first = episode.references[0]
            score = "nothing found" if one.score is None else f"score {one.score:.2f}"
            tiles.append(
                _tile(
                    _marked(read_image(first), read_mask(first), None),
                    _marked(target, read_mask(path), mask),
                    f"{one.target}, IoU {one.iou:.2f}, {score}",
                )
            )
        sheet = folder / f"{name}.png"
        _sheet(tiles).save(sheet)
        written.append(sheet)
    return written


def _of_distinct_classes(order: Sequence[TargetScore], count: int) -> list[TargetScore]:
    seen: set[str] = set()
    distinct: list[TargetScore] = []
    others: list[TargetScore] = []
    for one in order:
        owner = one.target.rpartition("/")[0]
        (others if owner in seen else distinct).append(one)
        seen.add(owner)
    return (distinct + others)[:count]


def _marked(image: Image, truth: Mask, found: Mask | None) -> PillowImage.Image:
    scale = _TILE_PX / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    tinted = [] if found is None else [(found, _FOUND)]
    return PillowImage.fromarray(draw_overlay(small, tinted=tinted, outlined=[(truth, _TRUTH)]))


def _tile(reference: PillowImage.Image, target: PillowImage.Image, caption: str) -> PillowImage.Image:
    tile = PillowImage.new("RGB", (2 * _TILE_PX + _GAP_PX, _TILE_PX + _CAPTION_PX), "white")
    tile.paste(reference, (0, 0))
    tile.paste(target, (_TILE_PX + _GAP_PX, 0))
    ImageDraw.Draw(tile).text((0, _TILE_PX + 3), caption, (20, 20, 20), ImageFont.load_default(12))
    return tile


def _sheet(tiles: Sequence[PillowImage.Image]) -> PillowImage.Image:
    rows = -(-len(tiles) // _COLUMNS)
    width, height = 2 * _TILE_PX + 3 * _GAP_PX, _TILE_PX + _CAPTION_PX + _GAP_PX
    sheet = PillowImage.new("RGB", (_COLUMNS * width + _GAP_PX, max(1, rows) * height + _GAP_PX), "white")
    for index, tile in enumerate(tiles):
        sheet.paste(tile, (_GAP_PX + index % _COLUMNS * width, _GAP_PX + index // _COLUMNS * height))
    return sheet
