"""The newest prediction of each task, as the project's page draws it.

Service and workers write it, the page reads it. A counter for each project grows with every change, so that a page asks
for one number to learn whether anything is new.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from backend.core.types import Json
from backend.store import tables
from backend.store.disabled_references import is_enabled
from backend.store.part import StorePart
from backend.store.propagation_tasks import portions
from backend.store.propagations import lock_project
from backend.store.records import ProjectKey, TileFilter, TilePrediction, TileRegion, UnwrittenPrediction
from backend.store.unwritten import insert_unwritten

VISIBLE_CHANGE: Final = 0.02
"""Change from which a tile counts as changed: less is the rounding of an outline."""

_tiles, _labels, _counters = tables.tiles, tables.tile_labels, tables.tile_counters


class TileStore(StorePart):
    """Reached as `Store.tiles`. Every method is one short transaction."""

    def save(
        self, project_key: ProjectKey, tiles: Sequence[TilePrediction], unwritten: Sequence[UnwrittenPrediction] = ()
    ) -> int:
        """Replace the tiles of some tasks; return the project's counter, which is theirs, too.

        Args:
            project_key: of the tasks.
            tiles: one a task; what waited to be written of these tasks is forgotten.
            unwritten: predictions of these tiles that Label Studio is to get.

        Raises:
            NotFoundError: the project is not in the store.
        """
        now = self._now()
        with self._write() as connection:
            lock_project(connection, project_key)
            counter = _next_counter(connection, project_key)
            for tile in tiles:
                _delete(connection, project_key, [tile.task_id])
                connection.execute(sa.insert(_tiles).values(_to_row(project_key, tile, counter, now)))
                best: dict[str, float] = {}
                for region in tile.regions:
                    best[region.label] = max(region.score, best.get(region.label, 0.0))
                if best:
                    rows = [
                        {"project_key": project_key, "task_id": tile.task_id, "label": label, "score": score}
                        for label, score in best.items()
                    ]
                    connection.execute(sa.insert(_labels), rows)
            for one in unwritten:
                insert_unwritten(connection, project_key, counter, one)
        return counter

    def note_written(self, project_key: ProjectKey, task_ids: Collection[int], model_version: str) -> None:
        """Note that Label Studio has the predictions of these tasks, if they are still of that version."""
        with self._write() as connection:
            for some in portions(sorted(task_ids)):
                mine = (_tiles.c.project_key == project_key) & _tiles.c.task_id.in_(some)
                same = mine & (_tiles.c.model_version == model_version)
                connection.execute(sa.update(_tiles).where(same).values(is_written=True))

    def forget(self, project_key: ProjectKey, task_ids: Collection[int]) -> None:
        """Remove the tiles of tasks that have no prediction any more."""
        with self._write() as connection:
            lock_project(connection, project_key)
            _next_counter(connection, project_key)
            for some in portions(sorted(task_ids)):
                _delete(connection, project_key, some)

    def touch(self, project_key: ProjectKey) -> None:
        """Let pages look again: something beside the tiles changed, such as which tasks are annotated."""
        with self._write() as connection:
            known = connection.scalar(sa.select(tables.projects.c.key).where(tables.projects.c.key == project_key))
            if known is not None:
                _next_counter(connection, project_key)

    def counter(self, project_key: ProjectKey) -> int:
        """Return the project's counter; 0 before the first tile."""
        rows = self._read(sa.select(_counters.c.counter).where(_counters.c.project_key == project_key))
        return int(rows[0].counter) if rows else 0

    def of_tasks(self, project_key: ProjectKey, task_ids: Collection[int]) -> dict[int, TilePrediction]:
        """Return the tiles of these tasks, as far as they have one, by task id."""
        found: dict[int, TilePrediction] = {}
        for some in portions(sorted(set(task_ids))):
            mine = (_tiles.c.project_key == project_key) & _tiles.c.task_id.in_(some)
            found |= {int(row.task_id): _from_row(row) for row in self._read(sa.select(_tiles).where(mine))}
        return found

    def versions(self, project_key: ProjectKey, task_ids: Collection[int]) -> dict[int, str]:
        """Return the model_version of each of these tasks' tiles, of those that Label Studio has or is to get."""
        found: dict[int, str] = {}
        for some in portions(sorted(set(task_ids))):
            is_cared_for = sa.or_(_tiles.c.is_written, _is_unwritten())
            mine = (_tiles.c.project_key == project_key) & _tiles.c.task_id.in_(some) & is_cared_for
            read = self._read(sa.select(_tiles.c.task_id, _tiles.c.model_version).where(mine))
            found |= {int(row.task_id): str(row.model_version) for row in read}
        return found

    def page(self, project_key: ProjectKey, wanted: TileFilter) -> list[tuple[float, TilePrediction]]:
        """Return a page of tiles, each with the value that it is ordered by."""
        of_label = wanted.label is not None and wanted.order == "score"
        value = _labels.c.score if of_label else _ORDERS[wanted.order]
        task_id = _labels.c.task_id if of_label else _tiles.c.task_id
        chosen = sa.select(_tiles, value.label("ordered_by")).where(*_conditions(project_key, wanted))
        if of_label:
            same = (_tiles.c.project_key == _labels.c.project_key) & (_tiles.c.task_id == _labels.c.task_id)
            chosen = chosen.join(_labels, same)
            chosen = chosen.where(_labels.c.project_key == project_key, _labels.c.label == wanted.label)
        descends = wanted.order in ("score", "change")
        if wanted.after is not None:
            last, last_id = wanted.after
            if descends:
                chosen = chosen.where(value <= last, sa.or_(value < last, task_id < last_id))
            else:
                chosen = chosen.where(value >= last, sa.or_(value > last, task_id > last_id))
        ordered = (value.desc(), task_id.desc()) if descends else (value, task_id)
        rows = self._read(chosen.order_by(*ordered).limit(wanted.count))
        return [(float(row.ordered_by), _from_row(row)) for row in rows]

    def counts(self, project_key: ProjectKey) -> dict[str, int]:
        """Return the number of tiles by state."""
        grouped = sa.select(_tiles.c.state, sa.func.count().label("total")).where(_tiles.c.project_key == project_key)
        return {str(row.state): int(row.total) for row in self._read(grouped.group_by(_tiles.c.state))}

    def main_version(self, project_key: ProjectKey) -> str | None:
        """Return the model_version that most tiles have whose predictions are in Label Studio; None without any."""
        counted = sa.func.count().label("total")
        mine = (_tiles.c.project_key == project_key) & _tiles.c.is_written & (_tiles.c.state != "failed")
        grouped = sa.select(_tiles.c.model_version, counted).where(mine).group_by(_tiles.c.model_version)
        rows = self._read(grouped.order_by(counted.desc(), sa.func.max(_tiles.c.counter).desc()).limit(1))
        return str(rows[0].model_version) if rows else None

    def sketches(self, project_key: ProjectKey, limit: int) -> dict[int, bytes | None]:
        """Return task id -> sketch of up to so many tasks with a prediction, the least certain first."""
        mine = (_tiles.c.project_key == project_key) & (_tiles.c.state != "failed")
        wanted = sa.select(_tiles.c.task_id, _tiles.c.sketch).where(mine)
        return {
            int(row.task_id): row.sketch
            for row in self._read(wanted.order_by(_tiles.c.certainty, _tiles.c.task_id).limit(limit))
        }

    def save_sketch(self, project_key: ProjectKey, task_id: int, sketch: bytes) -> None:
        """Keep the sketch of a task's image."""
        mine = (_tiles.c.project_key == project_key) & (_tiles.c.task_id == task_id)
        with self._write() as connection:
            connection.execute(sa.update(_tiles).where(mine).values(sketch=sketch))

    def in_state(self, project_key: ProjectKey, state: str) -> list[int]:
        """Return the tasks whose tiles are in a state."""
        mine = (_tiles.c.project_key == project_key) & (_tiles.c.state == state)
        return [int(row.task_id) for row in self._read(sa.select(_tiles.c.task_id).where(mine))]

    def to_label(self, project_key: ProjectKey, limit: int) -> list[TilePrediction]:
        """Return tiles of tasks without an annotation, the least certain first."""
        mine = (_tiles.c.project_key == project_key) & _tiles.c.state.in_(("masks", "empty")) & ~_is_annotated()
        wanted = sa.select(_tiles).where(mine).order_by(_tiles.c.certainty, _tiles.c.task_id).limit(limit)
        return [_from_row(row) for row in self._read(wanted)]

    def labelled(self, project_key: ProjectKey, limit: int) -> list[TilePrediction]:
        """Return tiles of tasks that have an annotation, the newest predictions first."""
        mine = (_tiles.c.project_key == project_key) & (_tiles.c.state != "failed") & _is_annotated()
        wanted = sa.select(_tiles).where(mine).order_by(_tiles.c.counter.desc(), _tiles.c.task_id).limit(limit)
        return [_from_row(row) for row in self._read(wanted)]

    def surest(self, project_key: ProjectKey, label: str, count: int) -> list[TilePrediction]:
        """Return tiles of tasks without an annotation on which a label is found, its highest scores first."""
        same = (_tiles.c.project_key == _labels.c.project_key) & (_tiles.c.task_id == _labels.c.task_id)
        mine = (_labels.c.project_key == project_key) & (_labels.c.label == label) & ~_is_annotated()
        wanted = sa.select(_tiles).join(_labels, same).where(mine, _tiles.c.state == "masks")
        ordered = wanted.order_by(_labels.c.score.desc(), _labels.c.task_id).limit(count)
        return [_from_row(row) for row in self._read(ordered)]

    def above(self, project_key: ProjectKey, score: float, limit: int) -> list[int]:
        """Return tasks without annotations whose regions all have at least this score, the surest first."""
        wanted = sa.select(_tiles.c.task_id).where(
            _tiles.c.project_key == project_key, _tiles.c.state == "masks", _tiles.c.certainty >= score,
            _tiles.c.certainty <= 1.0, ~_is_annotated(),
        )  # fmt: skip
        ordered = wanted.order_by(_tiles.c.certainty.desc(), _tiles.c.task_id).limit(limit)
        return [int(row.task_id) for row in self._read(ordered)]

    def annotated(self, project_key: ProjectKey, task_ids: Collection[int]) -> dict[int, dict[str, bool]]:
        """Return those of the tasks that have an annotation, with the labels of the references that it gave.

        Each label comes with whether one of these references takes part in matching: nobody disabled it.
        """
        records, references = tables.annotations.c, tables.references.c
        joined = tables.annotations.outerjoin(
            tables.references,
            (records.project_key == references.project_key) & (records.annotation_id == references.annotation_id),
        )
        columns = sa.select(records.task_id, references.label, is_enabled().label("is_enabled")).select_from(joined)
        found: dict[int, dict[str, bool]] = {}
        for some in portions(sorted(set(task_ids))):
            mine = (records.project_key == project_key) & records.task_id.in_(some)
            for row in self._read(columns.where(mine)):
                labels = found.setdefault(int(row.task_id), {})
                if row.label:
                    labels[row.label] = labels.get(row.label, False) or bool(row.is_enabled)
        return found


_ORDERS: Final[Mapping[str, sa.Column[Any]]] = {
    "id": _tiles.c.task_id, "score": _tiles.c.score, "certainty": _tiles.c.certainty, "change": _tiles.c.change,
}  # fmt: skip
ORDERS: Final = tuple(_ORDERS)
STATES: Final = ("masks", "empty", "failed", "changed", "annotated", "reference")


def _conditions(project_key: ProjectKey, wanted: TileFilter) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = [_tiles.c.project_key == project_key]
    if wanted.state in ("masks", "empty", "failed"):
        conditions.append(_tiles.c.state == wanted.state)
    elif wanted.state == "changed":
        conditions.append(_tiles.c.change >= VISIBLE_CHANGE)
    elif wanted.state == "annotated":
        conditions.append(_is_annotated())
    elif wanted.state == "reference":
        conditions.append(_has_reference())
    if wanted.label is not None and wanted.order != "score":
        same = (_labels.c.project_key == _tiles.c.project_key) & (_labels.c.task_id == _tiles.c.task_id)
        conditions.append(sa.exists().where(same, _labels.c.label == wanted.label))
    return conditions


def _is_annotated() -> sa.ColumnElement[bool]:
    records = tables.annotations.c
    return sa.exists().where(records.project_key == _tiles.c.project_key, records.task_id == _tiles.c.task_id)


def _has_reference() -> sa.ColumnElement[bool]:
    records, references = tables.annotations.c, tables.references.c
    return sa.exists().where(
        records.project_key == _tiles.c.project_key, records.task_id == _tiles.c.task_id,
        references.project_key == records.project_key, references.annotation_id == records.annotation_id, is_enabled(),
    )  # fmt: skip


def _is_unwritten() -> sa.ColumnElement[bool]:
    rows = tables.unwritten_predictions.c
    return sa.exists().where(rows.project_key == _tiles.c.project_key, rows.task_id == _tiles.c.task_id)


def _next_counter(connection: sa.Connection, project_key: ProjectKey) -> int:
    grown = sa.update(_counters).where(_counters.c.project_key == project_key).values(counter=_counters.c.counter + 1)
    counter = connection.scalar(grown.returning(_counters.c.counter))
    if counter is None:
        connection.execute(sa.insert(_counters).values(project_key=project_key, counter=1))
    return int(counter or 1)


def _delete(connection: sa.Connection, project_key: ProjectKey, task_ids: Sequence[int]) -> None:
    connection.execute(sa.delete(_tiles).where(_tiles.c.project_key == project_key, _tiles.c.task_id.in_(task_ids)))


def _to_row(project_key: ProjectKey, tile: TilePrediction, counter: int, now: float) -> Json:
    return {
        "project_key": project_key, "task_id": tile.task_id, "state": tile.state, "score": tile.score,
        "certainty": tile.certainty, "change": tile.change, "counter": counter, "model_version": tile.model_version,
        "is_written": tile.is_written, "reason": tile.reason, "image_tag": tile.image_tag, "height": tile.size_hw[0],
        "width": tile.size_hw[1], "updated_at": now, "regions": _to_json(tile.regions), "before": _to_json(tile.before),
        "sketch": tile.sketch,
    }  # fmt: skip


def _from_row(row: sa.Row[Any]) -> TilePrediction:
    return TilePrediction(
        task_id=int(row.task_id), state=str(row.state), model_version=str(row.model_version),
        regions=_from_json(row.regions), score=float(row.score), certainty=float(row.certainty), reason=row.reason,
        image_tag=str(row.image_tag), size_hw=(int(row.height), int(row.width)), is_written=bool(row.is_written),
        change=float(row.change), before=_from_json(row.before), counter=int(row.counter),
        updated_at=float(row.updated_at), sketch=row.sketch,
    )  # fmt: skip


def _to_json(regions: Sequence[TileRegion]) -> str:
    return json.dumps([[region.label, round(region.score, 4), region.path] for region in regions])


def _from_json(text: str) -> tuple[TileRegion, ...]:
    return tuple(TileRegion(label, float(score), path) for label, score, path in json.loads(text))
