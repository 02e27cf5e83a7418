"""SAM and MobileSAM as networks: built by their packages, filled by us."""

import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from backend.errors import ConfigurationError, ModelUnavailableError
from backend.models.sam.names import SAM_MODELS
from backend.models.weights.state_dict import read_state_dict

_import_lock = threading.Lock()


def build_sam(name: str, weights: Path | None, *, seed: int = 0) -> nn.Module:
    """Build a `Sam`: its parts are `image_encoder`, `prompt_encoder`, `mask_decoder`.

    Args:
        name: one of `SAM_MODELS`.
        weights: the official file or one of its layout; None: random weights, for tests and benchmarks.
        seed: of random weights.

    Raises:
        ConfigurationError: no such model.
        ModelUnavailableError: the package is not installed, or the weights do not fit.
    """
    if name not in SAM_MODELS:
        raise ConfigurationError(f"segmenter must be one of {', '.join(SAM_MODELS)}, got {name}; change the setting")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sam = _builder(name)()
        if weights is None:
            randomise_empty_parameters(sam)
    if weights is not None:
        load_sam_weights(sam, weights, name)
    # MobileSAM's attention keeps a table that `eval()` derives from the weights: it has to be called after they are in.
    return sam.eval()


def load_sam_weights(sam: nn.Module, weights: Path, name: str) -> None:
    """Put a weights file into a `Sam`, all of it.

    Raises:
        ModelUnavailableError: tensors are missing, too many or of other shapes.
    """
    try:
        sam.load_state_dict(read_state_dict(weights))
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise ModelUnavailableError(
            f"{weights} must hold {name}, got other tensors ({' '.join(lines[1:2] or lines)[:200].strip()}); "
            "import the file of this model"
        ) from error


def _builder(name: str) -> Callable[[], nn.Module]:
    package = "mobile_sam" if name == "mobile_sam" else "segment_anything"
    try:
        module = _import_mobile_sam() if package == "mobile_sam" else _import_segment_anything()
    except ImportError as error:
        raise ModelUnavailableError(
            f"segmenter {name} needs the package {package.replace('_', '-')}, which cannot be imported ({error}); "
            "install the project again: pip install -e ."
        ) from error
    builder: Callable[[], nn.Module] = getattr(module, f"build_{'sam_vit_t' if name == 'mobile_sam' else name}")
    return builder


def _import_segment_anything() -> ModuleType:
    import segment_anything

    module: ModuleType = segment_anything
    return module


def _import_mobile_sam() -> ModuleType:
    """Import mobile_sam without what that does to timm.

    It registers its TinyViT under timm's own names, whose models of that name would then be MobileSAM's; and it
    imports timm by deprecated paths, which warn.
    """
    with _import_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import timm.models.registry

        registry = timm.models.registry
        register = registry.register_model
        registry.register_model = lambda builder: builder
        try:
            import mobile_sam
        finally:
            registry.register_model = register
    module: ModuleType = mobile_sam
    return module


def randomise_empty_parameters(sam: nn.Module) -> None:
    """Fill position tables, which SAM starts at zero: with random weights they matter too."""
    for parameter in sam.parameters():
        if not bool(parameter.detach().any()):
            nn.init.normal_(parameter, std=0.02)
