"""The gallery's tiles as JSON for its page, and the fields of its address."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from flask import url_for
from werkzeug.datastructures import MultiDict

from backend.core.types import Json
from backend.drawing.label_colours import shown_colour
from backend.drawing.outline_path import grid_size
from backend.errors import BadInputError
from backend.labelstudio.label_appearance import read_label_appearance
from backend.projects.connections import Connections
from backend.projects.gallery import Tile, config_of
from backend.projects.prediction.preview import Stroke
from backend.projects.tiles import DrawnMasks
from backend.store import ProjectRecord
from backend.store.records import TileFilter, TileRegion
from backend.store.tiles import ORDERS, STATES, VISIBLE_CHANGE

PAGE_SIZES = (24, 48, 96)
MOST_IDS = 120
"""Tasks of one request."""
MOST_PREVIEWED = 8
"""Tasks that one request predicts with a scribble that is not kept."""
_LONGEST_LABEL = 200
_MOST_STROKES, _MOST_POINTS = 50, 2000


@dataclass(frozen=True)
class LabelShown:
    """A label of the legend."""

    name: str
    colour: str


def labels_shown(project: ProjectRecord) -> list[LabelShown]:
    """Return the labels of a project with their colours, in the config's order."""
    config = config_of(project)
    if config is None:
        return []
    written = read_label_appearance(project.label_config, config)
    return [
        LabelShown(label, shown_colour(written[label].value, written[label].background))
        if label in written
        else LabelShown(label, shown_colour(label, None))
        for label in config.labels
    ]


def read_filter(fields: MultiDict[str, str], labels: Sequence[str]) -> TileFilter:
    """Return which tiles an address asks for; what means nothing counts as not asked for."""
    order, state, label = fields.get("sort", "id"), fields.get("state") or None, fields.get("label") or None
    count = fields.get("count", "")
    wanted = TileFilter(
        order=order if order in ORDERS else "id",
        state=state if state in STATES else None,
        label=label if label in labels else None,
        count=int(count) if count in map(str, PAGE_SIZES) else PAGE_SIZES[0],
    )
    after = re.fullmatch(r"(-?[0-9.e-]{1,30}):([0-9]{1,18})", fields.get("after", ""))
    if after is None:
        return wanted
    try:
        value = float(after[1])
    except ValueError:
        return wanted
    return replace(wanted, after=(value, int(after[2]))) if math.isfinite(value) else wanted


def read_ids(value: object) -> list[int]:
    """Return ids of tasks, each once, in their order.

    Raises:
        BadInputError: not a list of up to `MOST_IDS` whole numbers.
    """
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list) or len(items) > MOST_IDS:
        raise BadInputError(f"expected up to {MOST_IDS} ids of tasks, got {str(value)[:40]!r}")
    if not all(re.fullmatch("[0-9]{1,18}", str(item)) for item in items):
        raise BadInputError(f"expected whole numbers as ids of tasks, got {str(value)[:40]!r}")
    return list(dict.fromkeys(int(item) for item in items))


def tiles_to_json(project: ProjectRecord, tiles: Sequence[Tile], connections: Connections) -> list[Json]:
    """Return what the page draws of some tiles.

    Args:
        project: of the tasks.
        tiles: in their order.
        connections: know where a person opens a task, and its name.
    """
    config = config_of(project)
    # A tile without a prediction shows the first image.
    first_image = config.images[0].name if config is not None else ""
    colours = {label.name: label.colour for label in labels_shown(project)}
    place, names = connections.place(project), connections.names(project, [tile.task_id for tile in tiles])
    return [
        {
            **_tile_to_json(project, tile, colours, first_image),
            "name": names.get(tile.task_id, f"task {tile.task_id}"),
            "address": place.address(tile.task_id),
        }
        for tile in tiles
    ]


def _tile_to_json(project: ProjectRecord, tile: Tile, colours: Mapping[str, str], first_image: str) -> Json:
    made = tile.prediction
    height, width = grid_size(made.size_hw if made else (0, 0))
    # A tile whose first prediction comes keeps its photograph: the same address.
    image_tag = (made.image_tag if made else "") or first_image
    photo = url_for("gallery.photo", project_id=project.project_id, task_id=tile.task_id, image=image_tag)
    return {
        "id": tile.task_id,
        "photo": photo,
        "state": made.state if made else "unknown",
        "score": made.score if made and made.state == "masks" else None,
        "certainty": made.certainty if made and made.state == "masks" else None,
        "scores": _best_scores(made.regions) if made else {},
        "reason": made.reason if made else None,
        "change": made.change if made else 0.0,
        "is_changed": bool(made and made.change >= VISIBLE_CHANGE),
        "counter": made.counter if made else 0,
        "version": made.model_version if made else None,
        "is_annotated": tile.is_annotated,
        "references": sorted(label for label, is_enabled in tile.references.items() if is_enabled),
        "disabled": sorted(label for label, is_enabled in tile.references.items() if not is_enabled),
        "missing": tile.missing or "not predicted yet",
        "size": [width, height],
        "has_size": bool(made and all(made.size_hw)),
        "regions": [_region(one, colours) for one in made.regions] if made else [],
        "before": [_region(one, colours) for one in made.before] if made else [],
    }


def masks_to_json(project: ProjectRecord, drawn: DrawnMasks) -> Json:
    """Return what the page draws of masks that are not kept."""
    colours = {label.name: label.colour for label in labels_shown(project)}
    height, width = grid_size(drawn.size_hw)
    return {"size": [width, height], "regions": [_region(one, colours) for one in drawn.regions]}


def read_strokes(value: object) -> list[Stroke]:
    """Return what somebody drew.

    Raises:
        BadInputError: not a list of up to 50 objects with `points`, 2,000 in all, each two numbers from 0 to 1.
    """
    items = value if isinstance(value, list) else []
    points = [one.get("points") if isinstance(one, dict) else None for one in items]
    total = sum(len(each) for each in points if isinstance(each, list))
    if not 1 <= len(items) <= _MOST_STROKES or not 1 <= total <= _MOST_POINTS:
        raise BadInputError(
            f'expected "strokes": 1 to {_MOST_STROKES} lines with {_MOST_POINTS} points in all, '
            f"got {len(items)} with {total}"
        )
    return [
        Stroke(_read_points(at), one.get("is_positive") is not False) for at, one in zip(points, items, strict=True)
    ]


def _read_points(value: object) -> tuple[tuple[float, float], ...]:
    points = []
    for one in value if isinstance(value, list) else [None]:
        pair = one if isinstance(one, list) and len(one) == 2 else [None]
        if not all(isinstance(each, int | float) and 0 <= each <= 1 for each in pair):
            raise BadInputError(f"expected points as two numbers from 0 to 1 each, got {str(one)[:40]!r}")
        x, y = pair
        points.append((float(x or 0), float(y or 0)))
    return tuple(points)


def _best_scores(regions: Sequence[TileRegion]) -> dict[str, float]:
    best: dict[str, float] = {}
    for region in regions:
        best[region.label] = max(region.score, best.get(region.label, 0.0))
    return best


def _region(region: TileRegion, colours: Mapping[str, str]) -> Json:
    colour = colours.get(region.label, "#36b37e")
    return {"label": region.label[:_LONGEST_LABEL], "score": region.score, "path": region.path, "colour": colour}
