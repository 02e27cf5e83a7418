"""SAM 2 as a network: built from the classes of the package `sam2`, an optional extra, without its configurations."""

import sys
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from backend.errors import ConfigurationError, ModelUnavailableError
from backend.models.sam.networks import randomise_empty_parameters
from backend.models.weights.state_dict import read_state_dict

SAM2_PACKAGE = "sam2==1.1.0"
IMAGE_PARTS = ("image_encoder.", "sam_prompt_encoder.", "sam_mask_decoder.", "no_mem_embed")
"""Of a SAM 2's tensors, those that images need; the rest is its memory of a video."""

_import_lock = threading.Lock()


@dataclass(frozen=True)
class Sam2Sizes:
    """The sizes of a SAM 2.1's Hiera backbone, by which the models differ. The defaults are Hiera's own.

    Source: `sam2/configs/sam2.1/*.yaml` of the package (Apache 2.0).

    Attributes:
        embed_dim, num_heads: of the first stage.
        stages: blocks of each stage.
        global_att_blocks: blocks that attend to the whole image.
        window_pos_embed_bkg_spatial_size: of the position table.
        window_spec: windows of each stage, in cells.
        hidden_dim, image_px: of the decoder, of the input.
    """

    embed_dim: int = 96
    num_heads: int = 1
    stages: tuple[int, ...] = (2, 3, 16, 3)
    global_att_blocks: tuple[int, ...] = (12, 16, 20)
    window_pos_embed_bkg_spatial_size: tuple[int, int] = (14, 14)
    window_spec: tuple[int, ...] = (8, 4, 14, 7)
    hidden_dim: int = 256
    image_px: int = 1024


SAM2_MODELS = {
    "sam2.1_hiera_tiny": Sam2Sizes(
        stages=(1, 2, 7, 2), global_att_blocks=(5, 7, 9), window_pos_embed_bkg_spatial_size=(7, 7)
    ),
    "sam2.1_hiera_small": Sam2Sizes(
        stages=(1, 2, 11, 2), global_att_blocks=(7, 10, 13), window_pos_embed_bkg_spatial_size=(7, 7)
    ),
    "sam2.1_hiera_base_plus": Sam2Sizes(embed_dim=112, num_heads=2),
    "sam2.1_hiera_large": Sam2Sizes(
        embed_dim=144,
        num_heads=2,
        stages=(2, 6, 36, 4),
        global_att_blocks=(23, 33, 43),
        window_pos_embed_bkg_spatial_size=(7, 7),
        window_spec=(8, 4, 16, 8),
    ),
}


def build_sam2(name: str, weights: Path | None, *, seed: int = 0) -> nn.Module:
    """Build a `SAM2Base` without memory; its parts are `image_encoder`, `sam_prompt_encoder`, `sam_mask_decoder`.

    Args:
        name: one of `SAM2_MODELS`.
        weights: the official file or one of its layout; None: random weights, for tests and benchmarks.
        seed: of random weights.

    Raises:
        ConfigurationError: no such model.
        ModelUnavailableError: the package is not installed, or the weights do not fit.
    """
    sizes = SAM2_MODELS.get(name)
    if sizes is None:
        raise ConfigurationError(f"segmenter must be one of {', '.join(SAM2_MODELS)}, got {name}; change the setting")
    sam = assemble_sam2(sizes, name, seed=seed)
    if weights is not None:
        load_sam2_weights(sam, weights, name)
    return sam.eval()


def require_sam2(name: str) -> None:
    """Import the package.

    Raises:
        ModelUnavailableError: it is not installed; says which command helps.
    """
    try:
        with _import_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _import_sam2()
    except ImportError as error:
        raise ModelUnavailableError(
            f"segmenter {name} needs the package sam2, which cannot be imported ({error}); run: "
            f"SAM2_BUILD_CUDA=0 {sys.executable} -m pip install --no-build-isolation {SAM2_PACKAGE}"
        ) from error


def _import_sam2() -> None:
    import sam2.modeling.sam2_base  # noqa: F401


def assemble_sam2(sizes: Sam2Sizes, name: str = "sam2", *, seed: int = 0) -> nn.Module:
    """Build the network with random weights.

    Raises:
        ModelUnavailableError: the package is not installed.
    """
    require_sam2(name)
    from sam2.modeling.backbones.hieradet import Hiera
    from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
    from sam2.modeling.sam2_base import SAM2Base

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = Hiera(
            embed_dim=sizes.embed_dim,
            num_heads=sizes.num_heads,
            stages=sizes.stages,
            global_att_blocks=sizes.global_att_blocks,
            window_pos_embed_bkg_spatial_size=sizes.window_pos_embed_bkg_spatial_size,
            window_spec=sizes.window_spec,
        )
        neck = FpnNeck(
            # The position encoding is for the memory of videos; sam2's own keeps tables, on any GPU that it sees.
            nn.Identity(),
            d_model=sizes.hidden_dim,
            backbone_channel_list=trunk.channel_list,
            fpn_top_down_levels=[2, 3],
            fpn_interp_model="nearest",
        )
        sam: nn.Module = SAM2Base(
            ImageEncoder(trunk, neck, scalp=1),
            memory_attention=None,
            memory_encoder=None,
            image_size=sizes.image_px,
            directly_add_no_mem_embed=True,
            use_high_res_features_in_sam=True,
            iou_prediction_use_sigmoid=True,
            pred_obj_scores=True,
            pred_obj_scores_mlp=True,
            # As the package's own `build_sam2` has it: where one mask is asked for and that one is uncertain at its
            # border, the best of the three comes in its place.
            sam_mask_decoder_extra_args={
                "dynamic_multimask_via_stability": True,
                "dynamic_multimask_stability_delta": 0.05,
                "dynamic_multimask_stability_thresh": 0.98,
            },
        )
        randomise_empty_parameters(sam)
    return sam.eval()


def load_sam2_weights(sam: nn.Module, weights: Path, name: str) -> None:
    """Put a weights file into a SAM 2: all that images need of it, no more and no less.

    Raises:
        ModelUnavailableError: tensors are missing, too many or of other shapes.
    """
    own = {key: tensor.shape for key, tensor in sam.state_dict().items() if key.startswith(IMAGE_PARTS)}
    state = {key: tensor for key, tensor in read_state_dict(weights).items() if key.startswith(IMAGE_PARTS)}
    missing = [key for key in own if key not in state]
    foreign = [key for key, tensor in state.items() if key not in own or tensor.shape != own[key]]
    if missing or foreign:
        raise ModelUnavailableError(
            f"{weights} must hold {name}, got other tensors ({len(missing)} missing, {len(foreign)} foreign or of "
            f"another shape, {(missing + foreign)[0]} the first of them); import the file of this model"
        )
    sam.load_state_dict(state, strict=False)
