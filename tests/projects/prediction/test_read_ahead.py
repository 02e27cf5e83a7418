"""The one download-ahead of predictions."""

import pytest

from backend.projects.prediction.read_ahead import begin_ahead


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_items_come_in_order_and_only_so_many_are_begun_before_they_are_needed(count: int) -> None:
    begun: list[int] = []

    def begin(item: int) -> int:
        begun.append(item)
        return 10 * item

    for number, item in enumerate(begin_ahead(range(6), begin, count=count, should_stop=lambda: False)):
        assert item == 10 * number
        assert begun == list(range(min(6, number + count)))
    assert begun == list(range(6))


def test_nothing_is_begun_after_it_was_asked_to_stop() -> None:
    begun: list[int] = []
    stops = iter([False, False, True])
    ahead = begin_ahead(range(9), begun.append, count=3, should_stop=lambda: next(stops))
    assert len(list(ahead)) == 2
    assert begun == [0, 1, 2, 3]


def test_without_items_there_is_nothing() -> None:
    assert list(begin_ahead([], lambda item: item, count=3, should_stop=lambda: False)) == []
