"""Drawing of explanations: score map, points, cluster masks with their scores, and why each was kept or rejected."""

import io
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from backend.core.explanation import ClusterMask, Explanation, LabelExplanation
from backend.core.types import Image, Mask
from backend.drawing.overlay import draw_overlay
from backend.drawing.text import drawable

_PANEL_PX = 308
_THUMBNAIL_PX = 180
_GAP_PX = 12
_CAPTION_PX = 54
_PER_ROW = 5
_KEPT, _REJECTED, _INK, _POINT = (40, 140, 70), (190, 50, 50), (30, 30, 30), (255, 220, 0)
_WIDTH_PX = _PER_ROW * (_THUMBNAIL_PX + _GAP_PX) + _GAP_PX


def draw_explanations(images: Sequence[tuple[Image, Explanation, str]], labels: Sequence[str]) -> bytes:
    """Draw the explanations of the images of one task as one PNG.

    Args:
        images: for each image (H, W, 3) uint8 RGB, at any size of its aspect ratio; its explanation; a title.
        labels: of the label config, in its order: a label that cannot be drawn is shown by its number.

    Returns:
        The PNG file.
    """
    blocks = [
        block
        for image, explanation, title in images
        for block in _image_blocks(image, _drawable(explanation, labels), title)
    ]
    height = sum(block.height for block in blocks) + _GAP_PX
    sheet = PillowImage.new("RGB", (_WIDTH_PX, height), "white")
    y = 0
    for block in blocks:
        sheet.paste(block, (0, y))
        y += block.height
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _drawable(explanation: Explanation, labels: Sequence[str]) -> Explanation:
    return replace(
        explanation,
        labels=tuple(
            replace(
                each,
                label=drawable(each.label, labels),
                reason=drawable(each.reason, labels),
                cluster_masks=tuple(replace(one, reason=drawable(one.reason, labels)) for one in each.cluster_masks),
            )
            for each in explanation.labels
        ),
    )


def _image_blocks(image: Image, explanation: Explanation, title: str) -> list[PillowImage.Image]:
    blocks = [
        _text_block(
            f"{drawable(title, ())}   matcher {explanation.matcher}, strategy {explanation.strategy}",
            _WIDTH_PX,
            size_px=17,
        )
    ]
    if not explanation.labels:
        blocks.append(
            _text_block(
                "No label has a reference yet (annotate a task and submit it), or the image is too small.", _WIDTH_PX
            )
        )
    for label in explanation.labels:
        blocks += _label_blocks(image, label)
    return blocks


def _label_blocks(image: Image, label: LabelExplanation) -> list[PillowImage.Image]:
    verdict = (
        f"{label.label}: {'kept' if label.is_kept else 'rejected'}, expected IoU {label.score:.2f}. {label.reason}"
    )
    blocks = [_text_block(verdict, _WIDTH_PX, colour=_KEPT if label.is_kept else _REJECTED, size_px=17)]
    points = [cluster.points_xy for cluster in label.cluster_masks]
    working_hw = label.score_map.shape
    all_points = np.concatenate(points) if points else np.zeros((0, 2), np.float32)
    colour = _KEPT if label.is_kept else _REJECTED
    panels = [
        (
            _heat(image, label.score_map, _PANEL_PX),
            f"score map, {label.score_map.min():.2f} to {label.score_map.max():.2f}",
        ),
        (_dots(_scaled(image, _PANEL_PX), all_points, working_hw), f"{len(all_points)} points, {len(points)} clusters"),
        (_overlay(image, label.mask, _PANEL_PX, colour), f"mask, {100 * label.mask.mean():.1f} % of the image"),
    ]
    blocks.append(_row([(panel, caption, _INK) for panel, caption in panels], _PANEL_PX))
    thumbnails = [_thumbnail(image, cluster, working_hw) for cluster in label.cluster_masks]
    blocks += [
        _row(thumbnails[start : start + _PER_ROW], _THUMBNAIL_PX) for start in range(0, len(thumbnails), _PER_ROW)
    ]
    return blocks


def _thumbnail(
    image: Image, cluster: ClusterMask, working_hw: tuple[int, ...]
) -> tuple[PillowImage.Image, str, tuple[int, int, int]]:
    colour = _KEPT if cluster.is_kept else _REJECTED
    picture = _overlay(image, cluster.mask, _THUMBNAIL_PX, colour)
    return _dots(picture, cluster.points_xy, working_hw), f"{cluster.score:.2f} {cluster.reason}", colour


def _row(panels: list[tuple[PillowImage.Image, str, tuple[int, int, int]]], side_px: int) -> PillowImage.Image:
    tallest = max((panel.height for panel, _, _ in panels), default=0)
    row = PillowImage.new("RGB", (_WIDTH_PX, tallest + _CAPTION_PX), "white")
    for index, (panel, caption, colour) in enumerate(panels):
        x = _GAP_PX + index * (side_px + _GAP_PX)
        row.paste(panel, (x, 0))
        row.paste(_text_block(caption, side_px, colour=colour, size_px=13, margin_px=0), (x, tallest + 2))
    return row


def _text_block(
    text: str, width_px: int, *, colour: tuple[int, int, int] = _INK, size_px: int = 15, margin_px: int = _GAP_PX
) -> PillowImage.Image:
    font = ImageFont.load_default(size_px)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width_px - 2 * margin_px or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    height = (size_px + 4) * len(lines) + (10 if margin_px else 0)
    block = PillowImage.new("RGB", (width_px, height), "white")
    draw = ImageDraw.Draw(block)
    for index, line in enumerate(lines):
        draw.text((margin_px, (8 if margin_px else 0) + index * (size_px + 4)), line, colour, font)
    return block


def _scaled(image: Image, side_px: int) -> PillowImage.Image:
    scale = side_px / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return PillowImage.fromarray(resized)


def _heat(image: Image, score_map: NDArray[np.float32], side_px: int) -> PillowImage.Image:
    small = np.asarray(_scaled(image, side_px), np.float32)
    values = cv2.resize(score_map, (small.shape[1], small.shape[0]), interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap((np.clip(values, 0, 1) * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    return PillowImage.fromarray((0.35 * small + 0.65 * colours).astype(np.uint8))


def _overlay(image: Image, mask: Mask, side_px: int, colour: tuple[int, int, int]) -> PillowImage.Image:
    coloured = [(mask, colour)]
    return PillowImage.fromarray(draw_overlay(np.asarray(_scaled(image, side_px)), tinted=coloured, outlined=coloured))


def _dots(picture: PillowImage.Image, points_xy: NDArray[np.float32], working_hw: tuple[int, ...]) -> PillowImage.Image:
    draw = ImageDraw.Draw(picture)
    for x, y in points_xy:
        at_x, at_y = x * picture.width / working_hw[1], y * picture.height / working_hw[0]
        draw.ellipse((at_x - 3, at_y - 3, at_x + 3, at_y + 3), _POINT, _INK)
    return picture
