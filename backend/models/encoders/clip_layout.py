"""CLIP's image encoder in transformers' layout, renamed to timm's; timm itself knows OpenAI's and OpenCLIP's only."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_MARK = "vision_model.embeddings.class_embedding"
_NAMES = (
    (r"^vision_model\.embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^vision_model\.pre_layrnorm\.", "norm_pre."),  # sic
    (r"^vision_model\.post_layernorm\.", "norm."),
    (r"^vision_model\.encoder\.layers\.", "blocks."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"^visual_projection\.", "head."),
)


def is_transformers_clip(state: Mapping[str, Tensor]) -> bool:
    """Return whether tensors have transformers' names of CLIP's image encoder."""
    return _MARK in state


def clip_image_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the image encoder's tensors by timm's names; the others are left out.

    Raises:
        KeyError: a part is missing.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith(("vision_model.", "visual_projection.")) or re.search(r"\.[kv]_proj\.", name):
            continue
        if name.startswith("vision_model.embeddings.") and "patch_embedding" not in name:
            continue
        if ".q_proj." in name:
            parts = [state[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            tensor, name = torch.cat(parts), name.replace(".self_attn.q_proj.", ".attn.qkv.")
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    renamed["cls_token"] = state[_MARK][None, None]
    renamed["pos_embed"] = state["vision_model.embeddings.position_embedding.weight"][None]
    renamed["head.bias"] = torch.zeros(len(renamed["head.weight"]), dtype=renamed["head.weight"].dtype)
    return renamed
