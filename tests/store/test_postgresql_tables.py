"""What of the tables is PostgreSQL's alone."""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from backend.store import Store, tables


def test_the_index_of_reasons_is_partial_on_both_databases() -> None:
    Store("postgresql://nobody@127.0.0.1:1/none")  # opens nothing yet
    index = next(one for one in tables.propagation_tasks.indexes if one.name == "propagation_tasks_reasons")
    for dialect in (sqlite.dialect(), postgresql.dialect()):  # type: ignore[no-untyped-call]
        assert str(sa.schema.CreateIndex(index).compile(dialect=dialect)).endswith("WHERE reason IS NOT NULL")
