"""The one download-ahead: what the next few items need is begun while the one at hand is worked on."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Begun = TypeVar("Begun")


def begin_ahead(
    items: Iterable[Item], begin: Callable[[Item], Begun], *, count: int, should_stop: Callable[[], bool]
) -> Iterator[Begun]:
    """Yield what `begin` returned for each item, in order, after it was called for the next `count - 1` items too.

    Args:
        items: what is worked on.
        begin: starts what an item needs, for example downloads in a pool, and returns without waiting for it.
        count: items that are begun at a time, the one that is yielded included.
        should_stop: asked before each item; True leaves the rest.
    """
    begun: deque[Begun] = deque()
    rest = iter(items)
    while not should_stop():
        while len(begun) < count:
            try:
                begun.append(begin(next(rest)))
            except StopIteration:
                break
        if not begun:
            return
        yield begun.popleft()
