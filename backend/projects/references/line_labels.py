"""Which labels of a project show thin lines, by the masks of their references."""

import threading
from collections import OrderedDict
from itertools import groupby, islice

from backend.core.ridge_path import is_line
from backend.store import Store
from backend.store.records import ProjectKey

MOST_MEASURED = 3
"""References of a label, the newest."""
_KEPT = 4096


class LineLabels:
    """Knows which labels show cracks, scratches, cables.

    Args:
        store: of the references.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._is_line: OrderedDict[int, bool | None] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, project_key: ProjectKey) -> frozenset[str]:
        """Return the labels of a project more than half of whose newest references show lines."""
        lines = set()
        for label, summaries in groupby(self._store.list_references(project_key), key=lambda one: one.label):
            measured = (self._measure(project_key, one.id) for one in summaries)
            known = list(islice((one for one in measured if one is not None), MOST_MEASURED))
            if 2 * sum(known) > len(known):
                lines.add(label)
        return frozenset(lines)

    def _measure(self, project_key: ProjectKey, reference_id: int) -> bool | None:
        """Return whether a reference's mask shows lines; None if it marks nothing, or is gone."""
        with self._lock:
            if reference_id in self._is_line:
                return self._is_line[reference_id]
        stored = self._store.reference_mask(project_key, reference_id)
        found = is_line(stored.mask) if stored is not None and stored.mask.any() else None
        with self._lock:
            self._is_line[reference_id] = found
            while len(self._is_line) > _KEPT:
                self._is_line.popitem(last=False)
        return found
