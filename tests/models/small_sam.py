"""SAMs of a few thousand parameters, and of the official layout."""

from functools import partial

import torch
from torch import nn


def small_sam(seed: int = 0, *, image_px: int = 128) -> nn.Module:
    """A `Sam` of segment-anything with two blocks: one with windows, one global, as the real ones have."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    cells = image_px // 16
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sam: nn.Module = Sam(
            image_encoder=ImageEncoderViT(
                depth=2, embed_dim=32, img_size=image_px, mlp_ratio=2, norm_layer=partial(nn.LayerNorm, eps=1e-6),
                num_heads=2, patch_size=16, qkv_bias=True, use_rel_pos=True, global_attn_indexes=[1], window_size=3,
                out_chans=32,
            ),
            prompt_encoder=PromptEncoder(
                embed_dim=32, image_embedding_size=(cells, cells), input_image_size=(image_px, image_px),
                mask_in_chans=16,
            ),
            mask_decoder=MaskDecoder(
                num_multimask_outputs=3,
                transformer=TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=2),
                transformer_dim=32, iou_head_depth=3, iou_head_hidden_dim=32,
            ),
        )  # fmt: skip
        for parameter in sam.parameters():  # position tables start at zero, and would hide mistakes about them
            if not bool(parameter.detach().any()):
                nn.init.normal_(parameter, std=0.1)
    return sam.eval()
