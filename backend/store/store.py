"""The whole store: what its parts keep, and what concerns several of them."""

import sqlalchemy as sa

from backend.store import tables
from backend.store.annotations import AnnotationStore
from backend.store.page_annotations import PageAnnotationStore
from backend.store.patches import PatchStore
from backend.store.pending import PendingStore
from backend.store.projects import ProjectStore
from backend.store.propagation_tasks import PropagationTaskStore
from backend.store.propagations import PropagationStore
from backend.store.quality import QualityStore
from backend.store.references import ReferenceStore
from backend.store.refiners import RefinerStore
from backend.store.texts import TextStore
from backend.store.tiles import TileStore
from backend.store.unwritten import UnwrittenStore


class Store(ProjectStore, AnnotationStore, PendingStore, ReferenceStore, PatchStore):
    """The database. Threads and processes may share it; every method is one short transaction.

    Every method may raise StoreUnavailableError (locked for longer than 15 s, full, unreachable, damaged) and
    BadInputError (a value that the database cannot hold).

    Attributes:
        propagations: runs over whole projects.
        propagation_tasks: their tasks.
        quality: the newest estimate of each project.
        refiners: what a label's references switched on.
        tiles: the newest prediction of each task, as the project's page draws it.
        unwritten: those of them that Label Studio is to get.
        page_annotations: annotations that were made on the project's page.
        texts: phrases of labels.
    """

    def __init__(self, url: str) -> None:
        """Check the URL; open nothing yet, see `Database`."""
        super().__init__(url)
        self.propagations = PropagationStore(self.read, self.write, self.about_now)
        self.propagation_tasks = PropagationTaskStore(self.read, self.write, self.about_now)
        self.quality = QualityStore(self.read, self.write, self.about_now)
        self.refiners = RefinerStore(self.read, self.write, self.about_now)
        self.tiles = TileStore(self.read, self.write, self.about_now)
        self.unwritten = UnwrittenStore(self.read, self.write, self.about_now)
        self.page_annotations = PageAnnotationStore(self.read, self.write, self.about_now)
        self.texts = TextStore(self.read, self.write, self.about_now)

    def mark_gone(self, key: str, reason: str) -> bool:
        """Note that Label Studio says it does not have a project: its propagations end, its data stays.

        Args:
            key: of the project.
            reason: what its unfinished propagations end with.

        Returns:
            False if it was marked before, or is unknown.
        """
        mine = (tables.projects.c.key == key) & tables.projects.c.gone_since.is_(None)
        with self.write() as connection:
            is_new = connection.execute(
                sa.update(tables.projects).where(mine).values(gone_since=self.about_now())
            ).rowcount
        for record in self.propagations.active(key):
            self.propagations.fail(record.id, reason)
        return bool(is_new)
