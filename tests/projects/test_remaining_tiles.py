"""All tasks of a project are predicted, some at a time, however many there are."""

from collections.abc import Iterator, Sequence
from typing import Any

from backend.projects.remaining_tiles import RemainingTiles

COUNT, PAGE = 1000, 100


class World:
    """A project of many tasks in all roles that the class needs, which counts what it is asked."""

    def __init__(self) -> None:
        self.version = "first"
        self.predicted: dict[int, str] = {}
        self.asked = 0
        self.tiles = self.unwritten = self

    def project(self, project_key: str) -> Any:
        return type("Record", (), {"project_id": 1})

    def count(self, project_key: str) -> int:
        return 0

    def list_references(self, project_key: str) -> list[int]:
        return [1]

    def model_version(self, project_key: str, *, wait_s: float) -> str:
        return self.version

    def client(self, project_key: str) -> "World":
        return self

    def task_ids(self, project_id: int, *, after: int = 0) -> Iterator[list[int]]:
        for start in range(after, COUNT, PAGE):
            yield list(range(start + 1, start + 1 + PAGE))

    def write(self, project_key: str, *, should_stop: Any) -> dict[str, int]:
        return {"written": 0, "left": 0}

    def outdated(self, project: Any, task_ids: Sequence[int]) -> list[int]:
        self.asked += 1
        return [one for one in task_ids if self.predicted.get(one) != self.version]

    def refresh(self, project_key: str, task_ids: Sequence[int], *, should_stop: Any) -> dict[str, int]:
        self.predicted.update(dict.fromkeys(task_ids, self.version))
        return {"predicted": len(task_ids), "left": 0}


def test_each_task_is_predicted_once_and_done_ones_are_not_asked_about_again() -> None:
    world: Any = World()
    remaining = RemainingTiles(world, world, world, world, "1.5", lambda: False)
    calls = sum(1 for _ in iter(remaining, False))
    assert len(world.predicted) == COUNT
    assert world.asked <= calls + 2 * COUNT // PAGE
    world.version = "second"
    assert remaining()
    for _ in iter(remaining, False):
        pass
    assert set(world.predicted.values()) == {"second"}
