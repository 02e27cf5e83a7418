"""Exports over fakes: nobody waits for what is away."""

import pytest


@pytest.fixture(autouse=True)
def _no_second_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.exports.reading.IMAGE_PAUSES_S", ())
