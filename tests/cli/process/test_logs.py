"""One line a message, as text or as JSON, whatever a client put into it."""

import json
import logging
from pathlib import Path

import pytest

from backend.cli.process.logs import JsonLines, TextLines
from testing.fakes import Backend


def _record(message: str, **more: object) -> logging.LogRecord:
    record = logging.LogRecord("backend.test", logging.INFO, __file__, 1, message, (), None)
    record.__dict__.update(more)
    return record


@pytest.mark.parametrize("formatter", [TextLines(), JsonLines()])
def test_what_a_client_sent_forges_no_line(formatter: logging.Formatter) -> None:
    line = formatter.format(_record("action=x\n2026-01-01 ERROR forged\r\x1b[31m\u2028\ud800" + "y" * 100_000))
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line
    assert len(line) < 20_000
    line.encode()  # a lone surrogate would make the stream fail


def test_json_has_the_figures_by_name() -> None:
    line = json.loads(
        JsonLines().format(_record("job=x id=1 ms=12", figures={"job": "x", "ms": 12, "level": "forged"}))
    )
    assert (line["job"], line["ms"], line["level"], line["logger"]) == ("x", 12, "INFO", "backend.test")
    assert line["time"].endswith("+00:00")


def test_a_traceback_is_part_of_the_object() -> None:
    try:
        raise ZeroDivisionError("no")
    except ZeroDivisionError as error:
        record = _record("failed", exc_info=(type(error), error, error.__traceback__))
    assert "ZeroDivisionError: no" in json.loads(JsonLines().format(record))["traceback"]


def test_each_request_and_each_job_has_one_line_with_ids_and_milliseconds(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    body = {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 7}], "project": backend.label_studio.project(1)}
    answer = backend.client.post("/webhook", json=body)
    backend.work()
    (request,) = [one for one in caplog.records if one.name == "backend.web.request_log"]
    assert request.getMessage().startswith(f"request={answer.headers['X-Request-Id']} POST /webhook status=201 ")
    assert {"request", "method", "route", "status", "action", "ms"} <= request.figures.keys()  # type: ignore[attr-defined]
    (job,) = [one for one in caplog.records if one.name == "backend.jobs.tasks"]
    assert {"job", "id", "project", "ms", "annotation", "outcome"} <= job.figures.keys()  # type: ignore[attr-defined]


def test_nothing_prints(tmp_path: Path) -> None:
    """What is not logged has no level, no time, and no place in JSON lines; commands talk to people through typer."""
    printers = [
        path.name
        for path in (Path(__file__).parents[3] / "backend").rglob("*.py")
        if "cli" not in path.parts and "evaluation" not in path.parts and " print(" in path.read_text()
    ]
    assert printers == []
