"""Converted graphs are read from their file, and made again if it is damaged."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from backend.models.cpu_engine import CpuEngine
from backend.models.device import openvino_network
from backend.models.device.openvino_network import OpenVinoNetwork
from backend.models.loading import _converted_file

ENGINE = CpuEngine("openvino", threads=1)
BATCH = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count conversions."""
    made: list[int] = []
    convert = openvino_network._convert

    def counted(*arguments: Any) -> Any:
        made.append(1)
        return convert(*arguments)

    monkeypatch.setattr(openvino_network, "_convert", counted)
    return made


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 2, 3)).eval()


def answers(kept: Path | None) -> np.ndarray[Any, Any]:
    return np.asarray(OpenVinoNetwork(network(), BATCH[:1], ENGINE, kept)(BATCH))


def test_a_kept_graph_gives_the_same_answers_and_is_converted_once(tmp_path: Path, conversions: list[int]) -> None:
    kept = tmp_path / "converted" / "one.openvino"
    wanted = answers(None)
    for _ in range(3):
        assert np.array_equal(answers(kept), wanted)
    assert len(conversions) == 2
    assert [path.name for path in kept.parent.iterdir()] == ["one.openvino"]


@pytest.mark.parametrize("kind", ["flipped", "truncated", "empty"])
def test_a_damaged_file_is_written_anew(tmp_path: Path, conversions: list[int], kind: str) -> None:
    kept = tmp_path / "one.openvino"
    wanted = answers(kept)
    whole = kept.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    kept.write_bytes({"flipped": flipped, "truncated": whole[:-5], "empty": b""}[kind])
    assert np.array_equal(answers(kept), wanted)
    assert len(conversions) == 2
    assert kept.read_bytes()[-5:] == whole[-5:]


def test_a_folder_that_cannot_be_written_costs_the_file_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    assert np.array_equal(answers(tmp_path / "file" / "one.openvino"), answers(None))
    assert "is not kept" in caplog.text


def test_other_weights_have_another_file(tmp_path: Path) -> None:
    named = []
    for content in (b"one", b"other"):
        weights = tmp_path / "sha256" / content.decode()
        weights.parent.mkdir(exist_ok=True)
        weights.write_bytes(content)
        named.append(_converted_file(weights))
    assert _converted_file(None) is None
    assert len({*named}) == 2
    assert {path.parent for path in named if path is not None} == {tmp_path / "converted"}


def test_a_network_of_an_unknown_package_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("backend.models.loading.version", unknown)
    (tmp_path / "weights").write_bytes(b"one")
    assert _converted_file(tmp_path / "weights") is None
