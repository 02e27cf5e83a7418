"""Finds the task that shows the image of masks: by content, or by a name that only one image has, or not at all.

A mask on the wrong image teaches a model nonsense, and nobody sees it. So whatever does not identify an image gives a
reason and no match.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from backend.errors import LabelStudioUnavailableError, SoftmatcherError
from backend.exports.image_names import ImageName, NameKey
from backend.exports.mask_sources import MaskSource
from backend.exports.names import export_name

T = TypeVar("T")


@dataclass(frozen=True)
class TaskImage:
    """The image of a task, by its address."""

    task_id: int
    address: str
    name: ImageName


@dataclass(frozen=True)
class SeenImage:
    """The image of a task, by its file.

    Attributes:
        sha256: of the file.
        size_hw: upright, in px.
    """

    sha256: str
    size_hw: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Match:
    """Masks and a task that shows their image."""

    task: TaskImage
    seen: SeenImage
    source: MaskSource


@dataclass(frozen=True)
class Matches:
    """The matches, and a line for each image without one.

    Attributes:
        found: in the order of the tasks.
        problems: sources that no task, or more than one, may show; images that cannot be read.
        notes: files that turned out to be no masks.
    """

    found: tuple[Match, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


Progress = Callable[[int, str], AbstractContextManager[Callable[[], None]]]
"""Shows a part of the work, with its number of steps; returns what is to be called after each."""


@contextmanager
def no_progress(total: int, what: str) -> Iterator[Callable[[], None]]:
    """Show nothing."""
    yield lambda: None


Look = Callable[[TaskImage, frozenset[int] | None], SeenImage | None]
"""Downloads and reads the image of a task; None without a download if its file has none of these sizes in bytes."""


def match_images(
    project_id: int,
    tasks: Sequence[TaskImage],
    sources: Sequence[MaskSource],
    look: Look,
    *,
    progress: Progress,
) -> Matches:
    """Find the tasks that show the images of mask sources.

    Tasks whose image has a source's name are looked at first. Others are looked at only while the content of a source's
    image is known and not yet found.

    Args:
        project_id: for messages.
        tasks: of the project.
        sources: of the folder; those with a problem of their own match nothing, but their names count.
        look: is called up to once per task.
        progress: shows the looking by name, and that by content if there is any.

    Raises:
        LabelStudioUnavailableError: an image's host does not answer.
    """
    matching = _Matching(project_id, tasks, sources, look)
    matching.look_by_name(progress)
    matching.look_by_content(progress)
    matching.match_by_content()
    matching.match_by_name()
    return matching.result()


class _Matching:
    def __init__(self, project_id: int, tasks: Sequence[TaskImage], sources: Sequence[MaskSource], look: Look) -> None:
        self._project_id = project_id
        self._tasks = tasks
        self._sources = sources
        self._look = look
        self._seen: dict[int, SeenImage | None] = {}
        self._seen_sha256s: dict[str, int] = {}
        self._found: list[Match] = []
        self._matched: set[MaskSource] = set()
        self._match_of_content: dict[str, Match] = {}
        self._problems: dict[MaskSource, str] = {}
        self._notes: list[str] = []
        self._unreadable: dict[int, str] = {}
        self._no_masks: set[MaskSource] = set()
        self._tasks_by_key = _by_key((task, task.name) for task in tasks)
        self._sources_by_key = _by_key((source, source.name) for source in sources)
        self._by_sha256: defaultdict[str, list[MaskSource]] = defaultdict(list)
        self._by_file_sha256: defaultdict[str | None, list[MaskSource]] = defaultdict(list)
        for source in sources:
            self._by_file_sha256[source.file_sha256].append(source)
            for digest in source.sha256s:
                self._by_sha256[digest].append(source)

    def look_by_name(self, progress: Progress) -> None:
        """Look at the tasks that have the name of a source."""
        with progress(len(self._sources), "images by name") as on_source:
            for source in self._sources:
                if source.sha256s or source.file_sha256 is not None:
                    for task in self._named(source):
                        self._see(task)
                on_source()

    def look_by_content(self, progress: Progress) -> None:
        """Look at further tasks until each known content has been seen."""
        missing = {source for source in self._sources if source.sha256s and source.problem is None}
        for seen in self._seen.values():
            self._cross_off(missing, seen)
        known = [source.size_bytes for source in missing]
        sizes = None if None in known else frozenset(size for size in known if size is not None)
        if not missing:
            return
        unseen = [task for task in self._tasks if task.task_id not in self._seen]
        with progress(len(unseen), "images by content") as on_task:
            for task in unseen:
                self._cross_off(missing, self._see(task, sizes))
                on_task()
                if not missing:
                    return

    def _cross_off(self, missing: set[MaskSource], seen: SeenImage | None) -> None:
        """Take what a seen image is of from the missing: of several sources of one content, one."""
        if seen is None:
            return
        found = next((source for source in self._by_sha256.get(seen.sha256, ()) if source in missing), None)
        missing.difference_update([found] if found else (), self._by_file_sha256.get(seen.sha256, ()))

    def match_by_content(self) -> None:
        """Match what shows the picture of a source."""
        undecided: defaultdict[str, list[tuple[TaskImage, SeenImage]]] = defaultdict(list)
        for task in self._tasks:
            seen = self._seen.get(task.task_id)
            same = self._by_sha256.get(seen.sha256, []) if seen else []
            if seen is None or not same:
                continue
            chosen = self._tell_apart(task, same)
            if chosen is not None:
                self._add(Match(task, seen, chosen))
            else:
                undecided[seen.sha256].append((task, seen))
        for sha256, copies in undecided.items():
            self._deal_out(copies, self._by_sha256[sha256])

    def _deal_out(self, copies: Sequence[tuple[TaskImage, SeenImage]], same: Sequence[MaskSource]) -> None:
        """Give tasks that show one picture a source of that picture each, in order, if there are as many of both."""
        left = [source for source in same if source not in self._matched]
        if len(left) == len(copies) and all(source.problem is None for source in left):
            left.sort(key=lambda source: (source.task_id or 0, source.shown))
            for (task, seen), source in zip(copies, left, strict=True):
                self._add(Match(task, seen, source))
            return
        tasks = ", ".join(str(task.task_id) for task, _ in copies[:5])
        for source in left:
            self._problems[source] = (
                f"{source.shown}: {len(left)} entries have the picture of task {tasks}: which of them it is to get "
                "cannot be told, leave one"
            )

    def match_by_name(self) -> None:
        """Match what nothing is known of but its name."""
        for source in self._sources:
            if source in self._matched or source in self._problems or source.problem is not None:
                continue
            named = self._named(source)
            if (itself := self._picture_itself(source)) is not None:
                self._notes.append(f"{source.shown}: is the picture of task {itself} itself, no mask")
                self._no_masks.add(source)
                continue
            if source.sha256s:
                self._problems[source] = self._why_not_found(source, named)
                continue
            if not named:
                self._problems[source] = f"{source.shown}: no task of project {self._project_id} shows this image"
            else:
                self._match_named(source, named)

    def result(self) -> Matches:
        """Return what came of it."""
        unmatched = []
        for source in self._sources:
            if source.problem is not None:
                unmatched.append(f"{source.shown}: {source.problem}")
            elif source not in self._matched and source not in self._no_masks:
                unmatched.append(self._problems[source])
        # Of a task that nothing is missing from, nobody asked.
        named = {task.task_id for source in self._sources for task in self._named(source)}
        unreadable = [text for task_id, text in self._unreadable.items() if unmatched or task_id in named]
        order = {task.task_id: number for number, task in enumerate(self._tasks)}
        found = sorted(self._found, key=lambda match: order[match.task.task_id])
        return Matches(
            tuple(each for each in found if each.source.problem is None),
            (*unreadable, *unmatched),
            tuple(self._notes),
        )

    def _add(self, match: Match) -> None:
        self._found.append(match)
        self._matched.add(match.source)
        self._match_of_content.setdefault(match.seen.sha256, match)

    def _match_named(self, source: MaskSource, named: Sequence[TaskImage]) -> None:
        task = self._only_task(source, named)
        if task is None:
            keys = source.name.keys | named[0].name.keys
            rivals = {each for key in keys for each in self._sources_by_key.get(key, ())}
            self._problems[source] = (
                f"{source.shown}: {len(named)} tasks and {len(rivals)} mask files are called "
                f"{_key_shown(source)!r}: put the images into the folder too, then their content decides"
            )
            return
        if source.name.contradicts(task.name):
            self._problems[source] = (
                f"{source.shown}: task {task.task_id} shows {task.name.shown}, which lies in another folder: put the "
                "image into the folder too, then its content decides"
            )
            return
        seen = self._see(task)
        if seen is None:
            self._problems[source] = f"{source.shown}: the image of task {task.task_id} cannot be read"
        elif seen.sha256 in self._by_sha256:
            known = ", ".join(each.shown for each in self._by_sha256[seen.sha256])
            self._problems[source] = (
                f"{source.shown}: task {task.task_id} has this name, but shows the picture of {known}, by its content"
            )
        else:
            self._add(Match(task, seen, source))

    def _only_task(self, source: MaskSource, named: Sequence[TaskImage]) -> TaskImage | None:
        """Return the task that a name means: unique on both sides, or else the one in the same folders."""
        if len(named) == 1 and not self._rivals(source, named[0]):
            return named[0]
        named = [task for task in named if task.name.folders] if source.name.folders else ()
        if not named:
            return None
        best = max(named, key=lambda task: source.name.agreement(task.name))
        agreed = source.name.agreement(best.name)
        rivals = [
            *(source.name.agreement(task.name) for task in named if task is not best),
            *(each.name.agreement(best.name) for each in self._rivals(source, best)),
        ]
        return best if agreed > max([0, *rivals]) else None

    def _rivals(self, source: MaskSource, task: TaskImage) -> list[MaskSource]:
        """Return the other sources that a task's name may mean."""
        sources = {each: None for key in task.name.keys for each in self._sources_by_key.get(key, ())}
        return [each for each in sources if each is not source and not self._is_picture_itself(each, task)]

    def _is_picture_itself(self, source: MaskSource, task: TaskImage) -> bool:
        seen = self._seen.get(task.task_id)
        return seen is not None and source.file_sha256 == seen.sha256

    def _picture_itself(self, source: MaskSource) -> int | None:
        """Return a task whose image is a mask's own file: that is a picture, then."""
        return None if source.file_sha256 is None else self._seen_sha256s.get(source.file_sha256)

    def _tell_apart(self, task: TaskImage, same: Sequence[MaskSource]) -> MaskSource | None:
        """Return which of the sources of one content a task is to get: its picture is theirs, whichever it is."""
        if len(same) == 1:
            return same[0]
        exported = [source for source in same if _exported_as(source, task)]
        for meant in (
            [source for source in same if source.name.keys & task.name.keys],
            exported,
            [source for source in exported if source.task_id == task.task_id],
        ):
            if len(meant) == 1:
                return meant[0]
        return None

    def _why_not_found(self, source: MaskSource, named: Sequence[TaskImage]) -> str:
        """Return why no task has the content of a source's image."""
        taken = next((match for each in source.sha256s if (match := self._match_of_content.get(each))), None)
        if taken is not None:
            return (
                f"{source.shown}: has the picture of task {taken.task.task_id} too, which gets the masks of "
                f"{taken.source.shown}"
            )
        others = ", ".join(str(task.task_id) for task in named[:3])
        hint = f"; of its name, but with another content: task {others}" if named else ""
        return f"{source.shown}: no task of project {self._project_id} shows this image{hint}"

    def _named(self, source: MaskSource) -> list[TaskImage]:
        tasks = {task: None for key in source.name.keys for task in self._tasks_by_key.get(key, ())}
        return sorted(tasks, key=lambda task: task.task_id)

    def _see(self, task: TaskImage, sizes: frozenset[int] | None = None) -> SeenImage | None:
        if task.task_id not in self._seen:
            try:
                seen = self._look(task, sizes)
                if seen is None:  # of another size than all that is missing
                    return None
                self._seen[task.task_id] = seen
                self._seen_sha256s.setdefault(seen.sha256, task.task_id)
            except LabelStudioUnavailableError:
                raise
            except SoftmatcherError as error:
                self._seen[task.task_id] = None
                self._unreadable[task.task_id] = f"task {task.task_id}: {error}"
        return self._seen[task.task_id]


def _by_key(named: Iterable[tuple[T, ImageName]]) -> dict[NameKey, list[T]]:
    found: defaultdict[NameKey, list[T]] = defaultdict(list)
    for each, name in named:
        for key in name.keys:
            found[key].append(each)
    return found


def _key_shown(source: MaskSource) -> str:
    return min((text for family, _, text in source.name.keys if family == "plain"), default=source.shown)


def _exported_as(source: MaskSource, task: TaskImage) -> bool:
    """Return whether an export of ours calls the image of this address as a source is called."""
    if source.task_id is None:
        return False
    name = source.shown.rpartition("/")[2]
    return export_name(source.task_id, task.address, "") == name.rpartition(".")[0]
