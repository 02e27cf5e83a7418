"""Base of the parts of the store: how they read, write, and tell the time."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import sqlalchemy as sa


class StorePart:
    """A part of `Store` that has its methods for itself.

    Args:
        read: runs a query and returns its rows.
        write: opens a short transaction.
        now: the database's time, seconds since 1970.
    """

    def __init__(
        self,
        read: Callable[[sa.Select[Any]], Sequence[sa.Row[Any]]],
        write: Callable[[], AbstractContextManager[sa.Connection]],
        now: Callable[[], float],
    ) -> None:
        self._read = read
        self._write = write
        self._now = now
