"""GET /projects/<id>/export: a data set as a zip, sent while it is written."""

import itertools
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import IO

from flask import Blueprint, Response, request

from backend.errors import ConflictError, SoftmatcherError
from backend.exports.exporter import archive_name, export_to_zip
from backend.exports.options import ExportOptions, options_from_texts
from backend.exports.reading import ExportedProject, open_project
from backend.projects.composition import Projects
from backend.settings import Settings

logger = logging.getLogger(__name__)

_THREADS = 2
"""Images that are fetched at a time: labelers' requests come first."""
_CHUNK_BYTES = 1 << 16


def create_export_routes(projects: Projects) -> Blueprint:
    """Return the route, over one set of projects; one export is downloaded at a time."""
    routes = Blueprint("export", __name__)
    one_at_a_time = threading.Lock()

    @routes.get("/projects/<int:project_id>/export")
    def export(project_id: int) -> Response:
        options = options_from_texts(request.args)
        project = open_project(projects, project_id, projects.banks.version_of)
        if not one_at_a_time.acquire(blocking=False):
            raise ConflictError("an export is being downloaded already: wait for its end, or use the command line")
        chunks = _Download(project, options, projects.settings).start(one_at_a_time.release)
        first = next(chunks)  # what goes wrong before the first image is an answer with a status
        response = Response(itertools.chain([first], chunks), content_type="application/zip")
        response.headers["Content-Disposition"] = f'attachment; filename="{archive_name(project, options)}.zip"'
        response.call_on_close(chunks.close)
        return response

    return routes


class _Download:
    """An export that runs in a thread and waits whenever nobody takes what it has written."""

    def __init__(self, project: ExportedProject, options: ExportOptions, settings: Settings) -> None:
        self._project = project
        self._options = options
        self._settings = settings
        self._failure: BaseException | None = None

    def start(self, on_end: Callable[[], None]) -> "_Chunks":
        """Return what it writes, as it comes; `on_end` is called once, when nobody takes any more of it."""
        reading, writing = os.pipe()
        reader, writer = os.fdopen(reading, "rb", buffering=0), os.fdopen(writing, "wb")
        threading.Thread(target=self._write, args=(writer,), name="export", daemon=True).start()
        return _Chunks(self, reader, on_end)

    def _write(self, stream: IO[bytes]) -> None:
        with suppress(BrokenPipeError), stream:  # closing writes what is left in its buffer
            self._export(stream)

    def _export(self, stream: IO[bytes]) -> None:
        key = self._project.key
        try:
            report = export_to_zip(
                self._project, self._options, self._settings, stream, threads=_THREADS, on_task=_nothing
            )
        except BrokenPipeError:
            logger.info("project=%s export ended: its client went away", key)
        except SoftmatcherError as error:
            self._failure = error
            logger.warning("project=%s export ended: %s", key, error)
        except BaseException as error:
            self._failure = error
            logger.exception("project=%s export", key)
        else:
            logger.info(
                "project=%s export format=%s images=%d objects=%d problems=%d",
                key, self._options.format, report.images, report.objects, report.problems,
            )  # fmt: skip

    def check(self) -> None:
        """Raise what ended the export, so that a client never takes a part for the whole."""
        if self._failure is not None:
            raise self._failure


class _Chunks:
    """The bytes of a download; ends with the error of the export, if it had one."""

    def __init__(self, download: _Download, stream: IO[bytes], on_end: Callable[[], None]) -> None:
        self._download = download
        self._stream = stream
        self._on_end = on_end

    def __iter__(self) -> "_Chunks":
        return self

    def __next__(self) -> bytes:
        chunk = b"" if self._stream.closed else self._stream.read(_CHUNK_BYTES)
        if chunk:
            return chunk
        self.close()
        self._download.check()
        raise StopIteration

    def close(self) -> None:
        """Take no more: the export then ends at its next write."""
        if not self._stream.closed:
            self._stream.close()
            self._on_end()


def _nothing() -> None:
    return None
