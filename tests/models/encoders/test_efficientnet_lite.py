"""The lite encoder: shapes, unit patches, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from backend.errors import BadInputError, ModelUnavailableError
from backend.models.encoders.efficientnet_lite import EfficientNetLiteEncoder
from backend.models.weights.digest import efficientnet_lite2_weights, weights_sha256


@pytest.fixture(scope="module")
def encoder() -> EfficientNetLiteEncoder:
    return EfficientNetLiteEncoder()


@pytest.mark.slow
@pytest.mark.parametrize(("hw", "grid"), [((448, 448), (28, 28)), ((480, 640), (24, 32)), ((1, 1), (28, 28))])
def test_patches_are_of_unit_length_on_a_grid_like_the_image(
    encoder: EfficientNetLiteEncoder, hw: tuple[int, int], grid: tuple[int, int]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*hw, 3), np.uint8)
    features = encoder.encode(image)
    assert features.shape == (*grid, 728)
    assert np.allclose(np.linalg.norm(features, axis=2), 1, atol=1e-5)
    fine = encoder.encode_fine(image)
    assert fine.shape == (2 * grid[0], 2 * grid[1], 728)
    assert np.allclose(np.linalg.norm(fine, axis=2), 1, atol=1e-5)


@pytest.mark.parametrize("hw", [(1, 5000), (5000, 1)])
def test_very_long_images_stay_bounded(encoder: EfficientNetLiteEncoder, hw: tuple[int, int]) -> None:
    assert sorted(encoder.encode(np.zeros((*hw, 3), np.uint8)).shape[:2]) == [2, 84]


@pytest.mark.slow
def test_same_image_same_features_and_signature_names_the_weights(encoder: EfficientNetLiteEncoder) -> None:
    image = np.random.default_rng(1).integers(0, 256, (60, 80, 3), np.uint8)
    assert np.array_equal(encoder.encode(image), encoder.encode(image))
    assert weights_sha256(efficientnet_lite2_weights())[:12] in encoder.signature


@pytest.mark.slow
def test_weights_are_the_trained_ones(encoder: EfficientNetLiteEncoder) -> None:
    """The patches of a photograph differ in their likeness to one of them: random weights hardly tell them apart."""
    from skimage import data

    coins = np.repeat(data.coins()[:, :, None], 3, axis=2)
    features = encoder.encode(np.ascontiguousarray(coins[:150, :130]))
    rows, columns = features.shape[:2]
    coin = features[int(rows * 0.5), int(columns * 0.45)]
    assert float((features @ coin).max()) <= 1 + 1e-5
    assert float((features @ coin).std()) > 0.05


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_image_is_rejected(encoder: EfficientNetLiteEncoder, image: NDArray[Any]) -> None:
    with pytest.raises(BadInputError, match=r"image must be \(H, W, 3\) uint8"):
        encoder.encode(image)


def test_missing_and_wrong_weights_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match="must be"):
        EfficientNetLiteEncoder(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ModelUnavailableError, match="PyTorch state dict"):
        EfficientNetLiteEncoder(tmp_path / "text.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "small.pth")
    with pytest.raises(ModelUnavailableError, match="EfficientNet-Lite2"):
        EfficientNetLiteEncoder(tmp_path / "small.pth")
