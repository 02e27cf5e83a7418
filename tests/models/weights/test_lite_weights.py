"""The weights of `lite`, read without PyTorch: as PyTorch reads them, and nothing but tensors."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backend.errors import ModelUnavailableError
from backend.models.weights.digest import efficientnet_lite2_weights
from backend.models.weights.lite_weights import read_lite_weights, read_tensors


def _save(path: Path, content: Any) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


@pytest.mark.slow
def test_tensors_are_those_that_pytorch_reads() -> None:
    path = efficientnet_lite2_weights()
    wanted = list(torch.load(path, map_location="cpu", weights_only=True).values())
    found = read_tensors(path)
    assert len(found) == len(wanted)
    for own, tensor in zip(found, wanted, strict=True):
        assert own.shape == tuple(tensor.shape)
        np.testing.assert_array_equal(own, tensor.numpy())


def test_parts_and_transposed_views_of_one_storage_are_read(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    path = _save(tmp_path / "views.pth", {"rows": whole[1:3], "turned": whole.T})
    rows, turned = read_tensors(path)
    np.testing.assert_array_equal(rows, whole[1:3].numpy())
    np.testing.assert_array_equal(turned, whole.T.numpy())


class _Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harm"),)


def test_code_in_a_file_of_weights_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelUnavailableError, match="tensors only"):
        read_tensors(_save(tmp_path / "harmful.pth", {"a": _Harmful()}))
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(_Harmful()))
    with pytest.raises(ModelUnavailableError, match="tensors only"):
        read_tensors(tmp_path / "plain.pkl")
    assert not (tmp_path / "harm").exists()


def test_a_file_cut_off_anywhere_is_rejected(tmp_path: Path) -> None:
    content = _save(tmp_path / "whole.pth", {"a": torch.ones(3, 5)}).read_bytes()
    assert [one.tolist() for one in read_tensors(tmp_path / "whole.pth")] == [[[1.0] * 5] * 3]
    for length in range(0, len(content), 7):
        (tmp_path / "cut.pth").write_bytes(content[:length])
        with pytest.raises(ModelUnavailableError, match="install them again"):
            read_tensors(tmp_path / "cut.pth")


def test_a_tensor_beyond_its_storage_is_rejected(tmp_path: Path) -> None:
    path = _save(tmp_path / "short.pth", {"a": torch.ones(4, 5)})
    content = path.read_bytes()
    shape = content.index(b"K\x04K\x05\x86")  # the shape's two sides in the pickle
    path.write_bytes(content[: shape + 1] + b"\x63" + content[shape + 2 :])
    with pytest.raises(ModelUnavailableError, match="must lie in its storage"):
        read_tensors(path)


def test_weights_of_another_network_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match="EfficientNet-Lite2"):
        read_lite_weights(_save(tmp_path / "other.pth", {"a": torch.zeros(3), "b": torch.zeros(2, 2)}))
    with pytest.raises(ModelUnavailableError, match="EfficientNet-Lite2"):
        read_lite_weights(_save(tmp_path / "many.pth", {str(n): torch.zeros(3) for n in range(12)}))
