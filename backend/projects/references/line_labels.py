"""Which labels of a project show thin lines, by the masks of their references."""

import threading
from collections import OrderedDict
from itertools import groupby, islice

from backend.core.ridge_path import is_line
from backend.store import Store
from backend.store.records import ProjectKey, ReferenceSummary

MOST_MEASURED = 3
"""References of a label, the newest."""
_MOST_READ = 24
"""References of a label that are looked at for these: an image without the label has no mask."""
_KEPT = 4096


class LineLabels:
    """Knows which labels show cracks, scratches, cables.

    Args:
        store: of the references.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._is_line: OrderedDict[tuple[int, float], bool | None] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, project_key: ProjectKey) -> frozenset[str]:
        """Return the labels of a project more than half of whose newest references show lines."""
        lines = set()
        for label, summaries in groupby(self._store.list_references(project_key), key=lambda one: one.label):
            measured = (self._measure(project_key, one) for one in islice(summaries, _MOST_READ))
            known = list(islice((one for one in measured if one is not None), MOST_MEASURED))
            if 2 * sum(known) > len(known):
                lines.add(label)
        return frozenset(lines)

    def _measure(self, project_key: ProjectKey, summary: ReferenceSummary) -> bool | None:
        """Return whether a reference's mask shows lines; None if it marks nothing, or is gone."""
        known = (summary.id, summary.created_at)  # a database may give the number of a deleted row again
        with self._lock:
            if known in self._is_line:
                return self._is_line[known]
        stored = self._store.reference_mask(project_key, summary.id)
        found = is_line(stored.mask) if stored is not None and stored.mask.any() else None
        with self._lock:
            self._is_line[known] = found
            while len(self._is_line) > _KEPT:
                self._is_line.popitem(last=False)
        return found
