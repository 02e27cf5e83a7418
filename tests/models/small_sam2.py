"""A SAM 2 of some hundred thousand parameters, of the official layout."""

from torch import nn

from backend.models.sam.sam2_networks import Sam2Sizes, assemble_sam2

SMALL = Sam2Sizes(
    embed_dim=16, num_heads=1, stages=(1, 1, 2, 1), global_att_blocks=(3,),
    window_pos_embed_bkg_spatial_size=(7, 7), window_spec=(4, 4, 2, 2), hidden_dim=32, image_px=128,
)  # fmt: skip


def small_sam2(seed: int = 0) -> nn.Module:
    """A `SAM2Base` with windows and a block that attends to all, as the real ones have."""
    return assemble_sam2(SMALL, seed=seed)
