"""The store, SQLite or PostgreSQL: projects, ingested annotations, their references, propagations.

What can be made again (features of targets) is not here but in `feature_cache`.
"""

from backend.store.records import AnnotationRecord, NewReference, ProjectRecord, StoredReference
from backend.store.store import Store

__all__ = ["AnnotationRecord", "NewReference", "ProjectRecord", "Store", "StoredReference"]
