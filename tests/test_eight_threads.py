"""Run the load of eight threads for some seconds; `benchmarks/eight_threads.py` runs it for minutes."""

import pytest

from testing.mixed_load import run_mixed_load


@pytest.mark.slow
def test_mixed_requests_get_their_own_answers_and_clicks_never_wait_for_batches() -> None:
    report = run_mixed_load(6.0)
    assert report.wrong == []
    assert report.overtaken == 0
    assert min(report.answers[kind] for kind in ("click", "open", "batch")) >= 1
    early_mb, late_mb = report.memory_mb
    assert late_mb < early_mb + 60
