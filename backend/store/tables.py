"""The tables. Both databases get the same ones."""

from typing import Final

import sqlalchemy as sa

SCHEMA_VERSION: Final = 10
"""Raise it with every released change. A new table, or a column that is nullable or has a server default, needs no more
than that, see `Store.create_tables`."""
WITH_COUNTERS: Final = 8
"""The first version that has `propagation_counts`."""

metadata = sa.MetaData()
_Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

schema = sa.Table(
    "schema_version",
    metadata,
    sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
    sa.Column("version", sa.Integer, nullable=False),
)
projects = sa.Table(
    "projects",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("project_id", _Id, nullable=False, index=True),
    sa.Column("created", _Id, nullable=False),
    sa.Column("title", sa.Text),
    sa.Column("label_config", sa.Text, nullable=False),
    sa.Column("settings", sa.Text),
    sa.Column("setup_token", sa.Text),
    sa.Column("needs_reconcile", sa.Boolean, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("gone_since", sa.Double),
    sa.Column("with_text", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("task_order", sa.Text),
    sa.Column("score_fit", sa.Text),
)
annotations = sa.Table(
    "annotations",
    metadata,
    sa.Column("project_key", sa.ForeignKey(projects.c.key, ondelete="CASCADE"), primary_key=True),
    sa.Column("annotation_id", _Id, primary_key=True, autoincrement=False),
    sa.Column("task_id", _Id, nullable=False),
    sa.Column("updated_at", sa.Text, nullable=False),
    sa.Column("updated_us", sa.BigInteger, nullable=False),
    sa.Column("signature", sa.Text, nullable=False),
    sa.Column("content_digest", sa.Text, nullable=False),
    sa.Column("problem", sa.Text),
    sa.Column("reading", sa.Text),
    sa.Column("images", sa.Text),
    sa.Index("annotations_by_task", "project_key", "task_id"),
)
# Where `reference_patches` has the rows, `features` has those for phrases alone and `features_crc32` is of the summary;
# older releases wrote everything into `features`.
# The blobs come last and the index holds all that a digest needs: neither digests nor counts ever read a blob's page.
references = sa.Table(
    "annotation_references",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("project_key", sa.Text, nullable=False),
    sa.Column("annotation_id", _Id, nullable=False),
    sa.Column("task_id", _Id, nullable=False),
    sa.Column("signature", sa.Text, nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("image_tag", sa.Text, nullable=False),
    sa.Column("image_sha256", sa.Text, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("features_crc32", sa.BigInteger, nullable=False),
    sa.Column("mask", sa.LargeBinary, nullable=False),
    sa.Column("features", sa.LargeBinary, nullable=False),
    sa.Column("patch_summary", sa.LargeBinary),
    sa.ForeignKeyConstraint(
        ["project_key", "annotation_id"], ["annotations.project_key", "annotations.annotation_id"], ondelete="CASCADE"
    ),
    sa.Index("annotation_references_of", "project_key", "annotation_id"),
    sa.Index("annotation_references_digests", "project_key", "signature", "label", "digest"),
)
# A few patches a row, below the 2 kB from which PostgreSQL moves a value out of its page: a bank reads some patches of
# each of thousands of references.
reference_patches = sa.Table(
    "annotation_reference_patches",
    metadata,
    sa.Column("reference_id", sa.ForeignKey(references.c.id, ondelete="CASCADE"), primary_key=True),
    sa.Column("first_row", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("crc32", sa.BigInteger, nullable=False),
    sa.Column("patches", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
# By what a reference is, not by its row: what is made again of the same annotation stays disabled. No column of the
# references: behind their blobs it would be read through these.
disabled_references = sa.Table(
    "disabled_references",
    metadata,
    sa.Column("project_key", sa.ForeignKey(projects.c.key, ondelete="CASCADE"), primary_key=True),
    sa.Column("digest", sa.Text, primary_key=True),
)
# References that somebody deleted on the page, until their annotation is another.
deleted_references = sa.Table(
    "deleted_references",
    metadata,
    sa.Column("project_key", sa.ForeignKey(projects.c.key, ondelete="CASCADE"), primary_key=True),
    sa.Column("annotation_id", _Id, primary_key=True, autoincrement=False),
    sa.Column("label", sa.Text, primary_key=True),
    sa.Column("image_tag", sa.Text, primary_key=True),
    sa.Column("content_digest", sa.Text, nullable=False),
)
# Neither of the next two needs its project to exist: a webhook may come before /setup.
tombstones = sa.Table(
    "tombstones",
    metadata,
    sa.Column("project_key", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("item_id", _Id, primary_key=True, autoincrement=False),
    sa.Column("deleted_at", sa.Double, nullable=False),
)
pending = sa.Table(
    "pending_annotations",
    metadata,
    sa.Column("project_key", sa.Text, primary_key=True),
    sa.Column("annotation_id", _Id, primary_key=True, autoincrement=False),
    sa.Column("marked_at", sa.Double, nullable=False),
)
# A propagation and its tasks are kept after it has ended: they say what was predicted with which references.
propagations = sa.Table(
    "propagations",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("project_key", sa.ForeignKey(projects.c.key, ondelete="CASCADE"), nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("filter", sa.Text, nullable=False),
    sa.Column("started_by", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("model_version", sa.Text),
    sa.Column("references_digest", sa.Text),
    sa.Column("planned_up_to", _Id, nullable=False),
    sa.Column("is_planned", sa.Boolean, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.Column("problem", sa.Text),
    sa.Column("paused_until", sa.Double),
    sa.Column("pauses", sa.Integer, nullable=False),
    sa.Column("kept", _Id, nullable=False, server_default="0"),
    sa.Column("tidy_after", sa.Double),
    sa.Column("plan_attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Index("propagations_of", "project_key", "id"),
    sa.Index("propagations_by_state", "state"),
)
_HAS_REASON = "reason IS NOT NULL"
# The index serves claims (`finished_at` is NULL for all that is pending) and holds all that counting needs.
propagation_tasks = sa.Table(
    "propagation_tasks",
    metadata,
    sa.Column("propagation_id", sa.ForeignKey(propagations.c.id, ondelete="CASCADE"), primary_key=True),
    sa.Column("task_id", _Id, primary_key=True, autoincrement=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("claim", sa.Text),
    sa.Column("finished_at", sa.Double),
    sa.Column("score", sa.Double),
    sa.Column("model_version", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Column("images", sa.Text),
    sa.Index("propagation_tasks_by_state", "propagation_id", "state", "finished_at", "task_id"),
    sa.Index(
        "propagation_tasks_reasons",
        "propagation_id",
        "reason",
        sqlite_where=sa.text(_HAS_REASON),
    ),
)


def complete_for_postgresql() -> None:
    """Add what PostgreSQL alone reads: naming it above would import its dialect, which SQLite needs none of."""
    for index in propagation_tasks.indexes:
        if index.name == "propagation_tasks_reasons":
            index.dialect_options["postgresql"]["where"] = sa.text(_HAS_REASON)


# How many tasks a propagation has in each state, and with which version they were predicted ("" if with none): counting
# the rows of a hundred thousand tasks takes tenths of a second. Only whoever holds the propagation's row writes here.
propagation_counts = sa.Table(
    "propagation_counts",
    metadata,
    sa.Column("propagation_id", sa.ForeignKey(propagations.c.id, ondelete="CASCADE"), primary_key=True),
    sa.Column("state", sa.Text, primary_key=True),
    sa.Column("model_version", sa.Text, primary_key=True),
    sa.Column("total", _Id, nullable=False),
)
refiners = sa.Table(
    "refiners",
    metadata,
    sa.Column("project_key", sa.ForeignKey(projects.c.key, ondelete="CASCADE"), primary_key=True),
    sa.Column("label", sa.Text, primary_key=True),
    sa.Column("trained_on", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("trained_at", sa.Double, nullable=False),
    sa.Column("arrays", sa.LargeBinary),
)
quality_estimates = sa.Table(
    "quality_estimates",
    metadata,
    sa.Column("project_key", sa.ForeignKey(projects.c.key, ondelete="CASCADE"), primary_key=True),
    sa.Column("model_version", sa.Text, nullable=False),
    sa.Column("estimated_at", sa.Double, nullable=False),
    sa.Column("figures", sa.Text, nullable=False),
)
# The newest prediction of each task as the project's page draws it: outlines, a few hundred bytes; no masks.
tiles = sa.Table(
    "tiles",
    metadata,
    sa.Column("project_key", sa.ForeignKey(projects.c.key, ondelete="CASCADE"), primary_key=True),
    sa.Column("task_id", _Id, primary_key=True, autoincrement=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("score", sa.Double, nullable=False),
    sa.Column("certainty", sa.Double, nullable=False),
    sa.Column("change", sa.Double, nullable=False),
    sa.Column("counter", _Id, nullable=False),
    sa.Column("model_version", sa.Text, nullable=False),
    sa.Column("is_written", sa.Boolean, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("image_tag", sa.Text, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("regions", sa.Text, nullable=False),
    sa.Column("before", sa.Text, nullable=False),
    sa.Column("sketch", sa.LargeBinary),
    sa.Index("tiles_by_score", "project_key", "score", "task_id"),
    sa.Index("tiles_by_certainty", "project_key", "certainty", "task_id"),
    sa.Index("tiles_by_change", "project_key", "change", "task_id"),
    sa.Index("tiles_by_state", "project_key", "state", "task_id"),
)
tile_labels = sa.Table(
    "tile_labels",
    metadata,
    sa.Column("project_key", sa.Text, primary_key=True),
    sa.Column("task_id", _Id, primary_key=True, autoincrement=False),
    sa.Column("label", sa.Text, primary_key=True),
    sa.Column("score", sa.Double, nullable=False),
    sa.ForeignKeyConstraint(["project_key", "task_id"], ["tiles.project_key", "tiles.task_id"], ondelete="CASCADE"),
    sa.Index("tile_labels_by_score", "project_key", "label", "score", "task_id"),
)
tile_counters = sa.Table(
    "tile_counters",
    metadata,
    sa.Column("project_key", sa.ForeignKey(projects.c.key, ondelete="CASCADE"), primary_key=True),
    sa.Column("counter", _Id, nullable=False),
    sa.Column("writer", sa.Text),
    sa.Column("writes_until", sa.Double),
)
# Predictions that tiles show already and Label Studio does not have yet: one goes with its tile, whatever
# replaces that.
unwritten_predictions = sa.Table(
    "unwritten_predictions",
    metadata,
    sa.Column("project_key", sa.Text, primary_key=True),
    sa.Column("task_id", _Id, primary_key=True, autoincrement=False),
    sa.Column("counter", _Id, nullable=False),
    sa.Column("model_version", sa.Text, nullable=False),
    sa.Column("prediction", sa.Text),
    sa.Column("images", sa.Text, nullable=False),
    sa.Column("absence", sa.Double, nullable=False),
    sa.ForeignKeyConstraint(["project_key", "task_id"], ["tiles.project_key", "tiles.task_id"], ondelete="CASCADE"),
)
# Annotations that somebody made on the project's page, so that they can be undone there; what one says is absent.
page_annotations = sa.Table(
    "page_annotations",
    metadata,
    sa.Column("project_key", sa.ForeignKey(projects.c.key, ondelete="CASCADE"), primary_key=True),
    sa.Column("annotation_id", _Id, primary_key=True, autoincrement=False),
    sa.Column("task_id", _Id, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("batch", sa.Text, nullable=False),
    sa.Column("absent_labels", sa.Text, nullable=False),
    sa.Column("made_at", sa.Double, nullable=False),
    sa.Index("page_annotations_by_time", "project_key", "made_at"),
)
# A phrase of a label config or of the page has no annotation; one that was written in the editor goes with its own.
text_references = sa.Table(
    "text_references",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("project_key", sa.ForeignKey(projects.c.key, ondelete="CASCADE"), nullable=False),
    sa.Column("annotation_id", _Id),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("phrase", sa.Text, nullable=False),
    sa.Column("is_negative", sa.Boolean, nullable=False),
    sa.ForeignKeyConstraint(
        ["project_key", "annotation_id"], ["annotations.project_key", "annotations.annotation_id"], ondelete="CASCADE"
    ),
    sa.Index("text_references_of", "project_key", "source"),
)
# Of no project: an annotation that is read again keeps the vectors of its phrases.
text_vectors = sa.Table(
    "text_vectors",
    metadata,
    sa.Column("text_space", sa.Text, primary_key=True),
    sa.Column("phrase", sa.Text, primary_key=True),
    sa.Column("vector", sa.LargeBinary, nullable=False),
)
text_scales = sa.Table(
    "text_scales",
    metadata,
    sa.Column("project_key", sa.ForeignKey(projects.c.key, ondelete="CASCADE"), primary_key=True),
    sa.Column("label", sa.Text, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("scale", sa.Text, nullable=False),
)
