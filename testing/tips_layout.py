"""transformers' `Tipsv2Model` in the layout of its publisher's file, and its dense features."""

import re
from typing import Any

import torch
from torch import Tensor

_NAMES = (
    (r"^text_model\.embeddings\.token_embedding", "text_encoder.token_embedding"),
    (r"^text_model\.final_layer_norm", "text_encoder.ln_final"),
    (r"^text_model\.encoder\.layers", "text_encoder.transformer.resblocks"),
    (r"layer_norm(\d)", r"ln_\1"),
    (r"self_attn", "attn"),
    (r"^(text.*)mlp\.fc1", r"\1mlp.c_fc"),
    (r"^(text.*)mlp\.fc2", r"\1mlp.c_proj"),
    (r"^vision_model\.embeddings\.patch_embeddings\.projection", "vision_encoder.patch_embed.proj"),
    (r"^vision_model\.embeddings\.position_embeddings", "vision_encoder.pos_embed"),
    (r"^vision_model\.embeddings\.", "vision_encoder."),
    (r"^vision_model\.layernorm", "vision_encoder.norm"),
    (r"^vision_model\.encoder\.layer", "vision_encoder.blocks"),
    (r"attention\.o_proj", "attn.proj"),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
)


def official_layout(model: Any) -> dict[str, Tensor]:
    """Return a model's tensors by the publisher's names."""
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor
    for name in [one for one in found if re.search(r"\.q_proj\.", one)]:
        joined = torch.cat([found.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"])
        kind = name.rpartition(".")[2]
        is_text = name.startswith("text")
        stem = re.sub(r"\.(attn|attention)\.q_proj\..*", "", name)
        found[f"{stem}.attn.in_proj_{kind}" if is_text else f"{stem}.attn.qkv.{kind}"] = joined
    return {name: tensor.contiguous() for name, tensor in found.items()}


def dense_features(vision: Any, inputs: Tensor) -> Tensor:
    """Return the features of patches by the values of the last layer, one layer after the other: (N, D)."""
    tokens = vision.embeddings(inputs)
    for layer in vision.encoder.layer[:-1]:
        tokens = layer(tokens)
    last = vision.encoder.layer[-1]
    values = last.attention.o_proj(last.attention.v_proj(last.norm1(tokens)))
    tokens = tokens + last.layer_scale1(values)
    tokens = tokens + last.layer_scale2(last.mlp(last.norm2(tokens)))
    dense: Tensor = vision.layernorm(tokens)[0, 2:]
    return dense
