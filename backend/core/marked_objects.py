"""Which marks of a scribble are on the same object: several objects of a label are cut one by one.

A segmenter makes one object of one scribble. Two clicks on two coins mean two objects, two clicks on one dog mean one.
So each mark is cut alone first; marks that lie on each other's masks are on one object and are cut together, and so are
marks whose masks touch, unless they are sure. All marks are cut as one object if that is much surer and contains what
each of them gave: one thing may be hard to cut.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.core.strokes import (
    MOST_STROKES,
    connected_pieces,
    crop_to_stroke,
    mask_to_stroke,
    paint_strokes,
    stroke_mask,
)
from backend.core.types import Mask, ScoredMask, Scribble, Stroke

MOST_MARKS = MOST_STROKES
"""A scribble of more marks is cut as one object: each mark alone costs a cut, 0.1 s on a processor."""
COVERED_SHARE = 0.5
"""A mark lies on an object that covers this share of it."""
SURER_AS_ONE = 0.2
"""Marks on several objects are cut as one where the best of them is expected to be this much worse than the one, and it
holds `COVERED_SHARE` of each: on cracks and other faint things a mark alone finds next to nothing."""
SURER_CLUSTER = 0.25
"""The same for the points of one object, where the segmenter's points add up (`Segmenter.points_add_up`).

Source of the three: benchmarks/marked_objects.py; other values change the mean IoU by 0.006 at most.
"""

Cut = Callable[[Scribble], ScoredMask | None]


@dataclass(frozen=True, eq=False)
class MarkedObject:
    """One of the objects that a scribble marks.

    Attributes:
        scribble: the marks on it, and the negatives of the whole scribble.
        found: its mask, in the frame of the scribble, and its expected IoU.
    """

    scribble: Scribble
    found: ScoredMask


@dataclass(frozen=True, eq=False)
class _Mark:
    """One positive mark: a box with what lies in it, a connected stroke with the points on it, or a point.

    Attributes:
        points_xy: (N, 2) float32, px.
        boxes_xyxy: (0 or 1, 4) float32, px.
        strokes: of a box any number, else one or none.
    """

    points_xy: NDArray[np.float32]
    boxes_xyxy: NDArray[np.float32]
    strokes: tuple[Stroke, ...]

    @property
    def is_point(self) -> bool:
        """Return whether there is neither box nor stroke."""
        return not self.strokes and not len(self.boxes_xyxy)


def find_marked_objects(cut: Cut, scribble: Scribble, *, points_add_up: bool) -> list[MarkedObject]:
    """Cut what a scribble marks, object by object.

    Args:
        cut: gives the mask of a scribble that marks one object.
        scribble: with something positive.
        points_add_up: of the segmenter, see `Segmenter.points_add_up`.

    Returns:
        The objects in the order of their first marks; [] where no mask was found. A scribble of one mark is cut as it
        is.
    """
    return _Marks(scribble).objects(cut, points_add_up=points_add_up)


class _Marks:
    """The positive marks of a scribble, in an order that does not depend on that of the regions."""

    def __init__(self, scribble: Scribble) -> None:
        self._scribble = _in_order(scribble)
        self._marks = self._split()

    def objects(self, cut: Cut, *, points_add_up: bool) -> list[MarkedObject]:
        everything = tuple(range(len(self._marks)))
        if not 1 < len(everything) <= MOST_MARKS:
            found = cut(self._scribble)
            return [] if found is None else [MarkedObject(self._scribble, found)]
        singles = [cut(self._scribble_of((number,))) for number in everything]
        groups = self._group(singles)

        def cut_group(group: tuple[int, ...]) -> ScoredMask | None:
            joined = cut(self._scribble if group == everything else self._scribble_of(group))
            alone = [singles[number] for number in group]
            return self._add_up(joined, alone) if points_add_up and self._are_points(group) else joined

        found_of = {group: singles[group[0]] if len(group) == 1 else cut_group(group) for group in groups}
        for touching in _touching(found_of):
            # A part that a first mask left out lies beside it. Sure masks are objects of their own: coins may touch.
            merged = tuple(sorted(number for group in touching for number in group))
            parts = [part for part in map(found_of.get, touching) if part is not None]
            if _mean_score(parts) >= 1 - SURER_AS_ONE:
                continue
            whole = cut_group(merged)
            if whole is not None and whole.score >= _mean_score(parts) and _holds(whole, parts):
                found_of = {group: found for group, found in found_of.items() if group not in touching}
                found_of[merged] = whole
        objects = [found for found in found_of.values() if found is not None]
        if len(found_of) > 1 and _best_score(objects) < 1 - SURER_AS_ONE:
            as_one = cut_group(everything)
            if as_one is not None and _is_better(as_one, objects):
                return [MarkedObject(self._scribble, as_one)]
        return [MarkedObject(self._scribble_of(group), found) for group, found in found_of.items() if found is not None]

    def _split(self) -> list[_Mark]:
        points = list(np.asarray(self._scribble.positive_xy, np.float32))
        pieces = _stroke_pieces(self._scribble)
        marks: list[_Mark] = []
        for box in self._scribble.boxes_xyxy:
            own = tuple(piece for piece in pieces if _px_in_box(piece, box) > COVERED_SHARE * piece.area_px)
            pieces = [piece for piece in pieces if piece not in own]
            is_own = [bool((point >= box[:2]).all() and (point <= box[2:]).all()) for point in points]
            marks.append(_Mark(_chosen(points, is_own), box[None], own))
            points = [point for point, own_point in zip(points, is_own, strict=True) if not own_point]
        no_box = np.zeros((0, 4), np.float32)
        for piece in pieces:
            is_own = [self._is_on(piece, point) for point in points]
            marks.append(_Mark(_chosen(points, is_own), no_box, (piece,)))
            points = [point for point, own_point in zip(points, is_own, strict=True) if not own_point]
        return marks + [_Mark(point[None], no_box, ()) for point in points]

    def _group(self, singles: Sequence[ScoredMask | None]) -> list[tuple[int, ...]]:
        """The numbers of the marks that are on one object, object by object."""
        owner = list(range(len(self._marks)))
        for first, found in enumerate(singles):
            if found is None:
                continue
            for second, mark in enumerate(self._marks):
                if owner[first] != owner[second] and self._covers(found.mask, mark):
                    lower, upper = sorted((owner[first], owner[second]))
                    owner = [lower if one == upper else one for one in owner]
        return [tuple(number for number, one in enumerate(owner) if one == group) for group in dict.fromkeys(owner)]

    def _covers(self, mask: Mask, mark: _Mark) -> bool:
        if len(mark.boxes_xyxy):
            within = _within(mask, mark.boxes_xyxy[0])
            return bool(within.size) and bool(within.mean() >= COVERED_SHARE)
        for stroke in mark.strokes:
            covered = np.count_nonzero(crop_to_stroke(mask, stroke) & stroke_mask(stroke))
            return covered >= COVERED_SHARE * stroke.area_px
        x, y = self._pixel(mark.points_xy[0])
        return bool(mask[y, x])

    @staticmethod
    def _add_up(joined: ScoredMask | None, alone: Sequence[ScoredMask | None]) -> ScoredMask | None:
        """The union of the points' own masks, but where all points together are much surer of theirs."""
        found = [one for one in alone if one is not None]
        mean = sum(one.score for one in found) / len(alone)
        if not found or (joined is not None and mean < joined.score - SURER_CLUSTER):
            return joined
        # Measured: the union agrees better with what was meant than what all points together give, at that one's score.
        score = mean if joined is None else max(mean, joined.score)
        return ScoredMask(np.logical_or.reduce([one.mask for one in found]), score)

    def _are_points(self, group: Sequence[int]) -> bool:
        return all(self._marks[number].is_point for number in group)

    def _scribble_of(self, numbers: Sequence[int]) -> Scribble:
        marks = [self._marks[number] for number in numbers]
        strokes = [stroke for mark in marks for stroke in mark.strokes]
        return replace(
            self._scribble,
            positive_xy=np.concatenate([mark.points_xy for mark in marks]),
            boxes_xyxy=np.concatenate([mark.boxes_xyxy for mark in marks]),
            positive_strokes=paint_strokes(strokes, self._scribble.size_hw) if strokes else None,
            strokes_apart=(),
        )

    def _is_on(self, stroke: Stroke, point_xy: NDArray[np.float32]) -> bool:
        x, y = self._pixel(point_xy)
        row, column = y - stroke.top, x - stroke.left
        is_near = 0 <= row < stroke.size_hw[0] and 0 <= column < stroke.size_hw[1]
        return is_near and bool(stroke_mask(stroke)[row, column])

    def _pixel(self, point_xy: NDArray[np.float32]) -> tuple[int, int]:
        height, width = self._scribble.size_hw
        x, y = np.clip(np.floor(point_xy).astype(int), 0, (width - 1, height - 1))
        return int(x), int(y)


def _is_better(as_one: ScoredMask, objects: Sequence[ScoredMask]) -> bool:
    """Return whether marks on several objects are rather on one, see `SURER_AS_ONE`."""
    is_surer = _best_score(objects) < as_one.score - SURER_AS_ONE
    return is_surer and _holds(as_one, objects)


def _holds(whole: ScoredMask, parts: Sequence[ScoredMask]) -> bool:
    return all(whole.mask[part.mask].mean() >= COVERED_SHARE for part in parts)


def _touching(found_of: Mapping[tuple[int, ...], ScoredMask | None]) -> list[list[tuple[int, ...]]]:
    """Return the groups of marks whose masks touch each other, two or more at a time."""
    masks = {group: found.mask for group, found in found_of.items() if found is not None}
    if len(masks) < 2:
        return []
    pieces = cv2.connectedComponents(np.logical_or.reduce([*masks.values()]).astype(np.uint8), connectivity=8)[1]
    clusters: list[tuple[set[int], list[tuple[int, ...]]]] = []
    for group, mask in masks.items():
        own = {int(piece) for piece in np.unique(pieces[mask])}
        near = [cluster for cluster in clusters if cluster[0] & own]
        clusters = [cluster for cluster in clusters if cluster not in near]
        groups = [other for _, others in near for other in others]
        clusters.append((own.union(*(each for each, _ in near)), [*groups, group]))
    return [groups for _, groups in clusters if len(groups) > 1]


def _mean_score(objects: Sequence[ScoredMask]) -> float:
    return sum(one.score for one in objects) / len(objects) if objects else 0.0


def _best_score(objects: Sequence[ScoredMask]) -> float:
    """Return the score of the surest: a sure mark says nothing of an unsure one beside it, so both stay."""
    return max((one.score for one in objects), default=0.0)


def _stroke_pieces(scribble: Scribble) -> list[Stroke]:
    """Return the connected pieces of each region's strokes; regions stay apart where they touch.

    Where they are too many, pieces count across regions, and if these are too many, all strokes as one.
    """
    whole = None if scribble.positive_strokes is None else mask_to_stroke(scribble.positive_strokes)
    if whole is None:
        return []
    pieces = [piece for stroke in scribble.strokes_apart for piece in connected_pieces(stroke)]
    if not 0 < len(pieces) <= MOST_MARKS:
        pieces = connected_pieces(whole)
    return sorted(pieces, key=lambda one: (one.top, one.left, one.size_hw, one.area_px, one.bits.tobytes()))


def _px_in_box(stroke: Stroke, box_xyxy: NDArray[np.float32]) -> int:
    return int(np.count_nonzero(_within(stroke_mask(stroke), box_xyxy - np.tile([stroke.left, stroke.top], 2))))


def _within(mask: Mask, box_xyxy: NDArray[np.floating]) -> Mask:
    left, top, right, bottom = (max(0, round(float(side))) for side in box_xyxy)
    return mask[top:bottom, left:right]


def _in_order(scribble: Scribble) -> Scribble:
    """Return the scribble with its points and boxes sorted; itself if they are."""
    unordered = {
        name: rows[order]
        for name in ("positive_xy", "negative_xy", "boxes_xyxy")
        if len(rows := getattr(scribble, name)) > 1
        and not np.array_equal(order := np.lexsort(rows.T[::-1]), np.arange(len(rows)))
    }
    return replace(scribble, **unordered) if unordered else scribble


def _chosen(points: Sequence[NDArray[np.float32]], is_chosen: Sequence[bool]) -> NDArray[np.float32]:
    chosen = [point for point, is_own in zip(points, is_chosen, strict=True) if is_own]
    return np.array(chosen, np.float32).reshape(-1, 2)
