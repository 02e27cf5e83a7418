"""The files of a folder's project: labels and options, annotations, predictions."""

import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backend.atomic_files import replacing
from backend.core.types import Json
from backend.errors import ConfigurationError, OutputError

logger = logging.getLogger(__name__)

_STATE = "project.json"
_FORMAT = 1
_ANNOTATION = re.compile(r"[0-9]{13,16}\.json")
_MOST_BYTES = 64 << 20
"""Largest file that is read here."""


@dataclass
class ProjectState:
    """The content of `project.json`.

    Attributes:
        folder: of the images, percent-encoded.
        created_at: of the project, ISO 8601.
        labels: in their order.
        extra_params: options of the project.
        images: paths of the images as `FoundImages` has them; the task of the first one has the id 1.
    """

    folder: str
    created_at: str
    labels: list[str] = field(default_factory=list)
    extra_params: Json = field(default_factory=dict)
    images: list[str] = field(default_factory=list)


class AnnotationFiles:
    """The files of one project; one process at a time has them open, and its threads take turns.

    A file is replaced as a whole or not at all. One that cannot be read is left where it is, and nothing takes its
    name. An annotation that is deleted goes to the folder `removed`.
    """

    def __init__(self, folder: Path) -> None:
        """Open the files; the folder is made.

        Raises:
            ConfigurationError: another process has them open.
            OutputError: the folder cannot be made.
        """
        self._folder = folder
        self.problems: list[str] = []
        self._last_id = 0
        with _reported(folder):
            for part in ("annotations", "predictions"):
                (folder / part).mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise ConfigurationError(
                f"{folder} is open in another process: end that, or name another --store"
            ) from error

    @property
    def folder(self) -> Path:
        """Return where they are."""
        return self._folder

    def close(self) -> None:
        """Let others open the files."""
        os.close(self._lock)

    def state(self) -> ProjectState | None:
        """Return what was saved last; None at first.

        Raises:
            ConfigurationError: the file cannot be read.
        """
        path = self._folder / _STATE
        if not path.exists():
            return None
        try:
            saved = _read(path)
            if saved.pop("format") != _FORMAT:
                raise ValueError("it is of another version of this program")
            state = ProjectState(**saved)
            if not all(isinstance(each, str) for each in (*state.labels, *state.images, state.folder)):
                raise ValueError("labels, images and folder must be texts")
            datetime.fromisoformat(state.created_at)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigurationError(
                f"{path} cannot be read ({error}): put a copy of it back, or name another --store"
            ) from error
        return state

    def save_state(self, state: ProjectState) -> None:
        """Replace what is saved.

        Raises:
            OutputError: it cannot be written.
        """
        self._write(self._folder / _STATE, {"format": _FORMAT, **vars(state)})

    def annotations(self) -> list[Json]:
        """Return all annotations, oldest first, each with `task`; those that cannot be read go to `problems`."""
        found = []
        for path in sorted((self._folder / "annotations").iterdir()):
            if not _ANNOTATION.fullmatch(path.name):
                continue
            self._last_id = max(self._last_id, int(path.stem))
            try:
                (annotation,) = _read(path)["annotations"]
                if annotation["id"] != int(path.stem) or not isinstance(annotation["task"], int):
                    raise ValueError("its id is not that of its name")
                if not isinstance(annotation["result"], list):
                    raise ValueError("it has no list of regions")
            except (OSError, ValueError, TypeError, KeyError) as error:
                self.problems.append(f"{path} cannot be read and is left as it is: {error}")
                logger.warning("%s", self.problems[-1])
                continue
            found.append(annotation)
        return found

    def add_annotation(self, task_id: int, address: str, result: Sequence[Mapping[str, Any]], more: Json) -> Json:
        """Write a new annotation, as a task that Label Studio can import, and return it.

        Raises:
            OutputError: it cannot be written.
        """
        now = datetime.now(UTC).isoformat()
        annotation = {
            "id": self.next_id(), "task": task_id, "result": [dict(each) for each in result],
            "was_cancelled": False, "created_at": now, "updated_at": now, **more,
        }  # fmt: skip
        document = {"data": {"image": address}, "annotations": [annotation]}
        self._write(self._folder / "annotations" / f"{annotation['id']}.json", document)
        return annotation

    def remove_annotation(self, annotation_id: int) -> None:
        """Move the file of an annotation to `removed`.

        Raises:
            OutputError: it cannot be moved.
        """
        removed = self._folder / "removed"
        with _reported(removed):
            removed.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):
                (self._folder / "annotations" / f"{annotation_id}.json").replace(removed / f"{annotation_id}.json")

    def prediction(self, task_id: int) -> Json | None:
        """Return the prediction of a task; None if it has none, or its file cannot be read: it is made again then."""
        try:
            return _read(self._prediction(task_id))
        except (OSError, ValueError):
            return None

    def save_prediction(self, task_id: int, prediction: Mapping[str, Any]) -> Json:
        """Replace the prediction of a task.

        Raises:
            OutputError: it cannot be written.
        """
        made = {**prediction, "id": self.next_id(), "task": task_id}
        self._write(self._prediction(task_id), made, is_lasting=False)
        return made

    def delete_prediction(self, task_id: int) -> None:
        """Delete the prediction of a task."""
        self._prediction(task_id).unlink(missing_ok=True)

    def next_id(self) -> int:
        """Return an id that nothing here ever had: the time in ms, or the next number."""
        self._last_id = max(self._last_id + 1, int(1000 * time.time()))
        return self._last_id

    def _prediction(self, task_id: int) -> Path:
        return self._folder / "predictions" / f"{task_id}.json"

    def _write(self, path: Path, document: object, *, is_lasting: bool = True) -> None:
        with _reported(path), replacing(path) as file:
            file.write(json.dumps(document, separators=(",", ":")).encode())
            if is_lasting:
                file.flush()
                os.fsync(file.fileno())


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turn errors of the disk into ours."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


def _read(path: Path) -> Json:
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"it is larger than {_MOST_BYTES >> 20} MB")
    try:
        found = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found
