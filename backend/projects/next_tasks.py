"""Which tasks are worth labeling next, and which predictions a look: from the tiles in the store, nobody is asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from backend.core.task_selection import Choice, choose_next
from backend.errors import ModelUnavailableError
from backend.projects.gallery import config_of
from backend.projects.model_host import Models
from backend.projects.tiles import unpack_sketch
from backend.store import ProjectRecord, Store
from backend.store.records import TilePrediction

NEXT_COUNT: Final = 5
CONFIRMED_A_LABEL: Final = 2
_MOST_CANDIDATES = 400
_MOST_LABELLED = 400
_MOST_LABELS = 24
_MODEL_WAIT_S = 0.5


@dataclass(frozen=True)
class NextTask:
    """A task that is worth labeling.

    Attributes:
        prediction: of it.
        reason: for people.
    """

    prediction: TilePrediction
    reason: str


class NextTasks:
    """Chooses tasks: the least certain one, then such that are unlike it and unlike what is labeled."""

    def __init__(self, store: Store, models: Models) -> None:
        self._store = store
        self._models = models

    def to_label(self, project: ProjectRecord, count: int = NEXT_COUNT) -> list[NextTask]:
        """Return tasks without an annotation that are worth labeling, best first; [] if none was predicted."""
        known = self._store.tiles.to_label(project.key, _MOST_CANDIDATES)
        if not known:
            return []
        labelled = self._store.tiles.labelled(project.key, _MOST_LABELLED)
        vectors = self._vectors([*known, *labelled])
        sketched = [one for one in known if one.task_id in vectors]
        if not sketched:
            return [NextTask(one, _reason(one, None)) for one in known[:count]]
        pooled = np.stack([vectors[one.task_id] for one in sketched])
        of_labelled = [vectors[one.task_id] for one in labelled if one.task_id in vectors]
        seen = np.stack(of_labelled) if of_labelled else pooled[:0]
        scores = [one.certainty for one in sketched]
        first = choose_next(scores, pooled, seen, 1, rule="uncertain")
        seen = np.vstack([seen, pooled[[first[0].index]]])
        # The first one again is the most alike to what is seen, and is left out.
        scores[first[0].index] = 1.0
        rest = [one for one in choose_next(scores, pooled, seen, count, rule="both") if one.index != first[0].index]
        return [NextTask(sketched[one.index], _reason(sketched[one.index], one)) for one in (first + rest)[:count]]

    def to_confirm(self, project: ProjectRecord) -> list[tuple[str, TilePrediction]]:
        """Return the surest predictions of each label on tasks without an annotation, with the label."""
        config = config_of(project)
        found: dict[int, tuple[str, TilePrediction]] = {}
        for label in config.labels[:_MOST_LABELS] if config is not None else ():
            mine = 0
            for one in self._store.tiles.surest(project.key, label, 2 * CONFIRMED_A_LABEL + len(found)):
                if one.task_id not in found and mine < CONFIRMED_A_LABEL:
                    found[one.task_id] = (label, one)
                    mine += 1
        return list(found.values())

    def _vectors(self, tiles: Sequence[TilePrediction]) -> dict[int, NDArray[np.float32]]:
        try:
            signature = self._models.get(_MODEL_WAIT_S)[0].signature
        except ModelUnavailableError:
            return {}
        found = {one.task_id: unpack_sketch(one.sketch, signature) for one in tiles}
        return {task_id: vector for task_id, vector in found.items() if vector is not None}


def _reason(prediction: TilePrediction, choice: Choice | None) -> str:
    if prediction.state == "empty":
        certain = f"nothing is found, which is right with a probability of {prediction.certainty:.2f}"
    else:
        certain = f"its least certain mask scores {prediction.certainty:.2f}"
    if choice is None or choice.similarity is None:
        return certain
    return f"{certain}; similarity to what is labeled or chosen {choice.similarity:.2f}"


__all__ = ["CONFIRMED_A_LABEL", "NEXT_COUNT", "NextTask", "NextTasks"]
