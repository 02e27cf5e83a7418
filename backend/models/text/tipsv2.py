"""TIPSv2's text encoder through transformers, read from local files, never from a hub.

Source: https://huggingface.co/google/tipsv2-b14; "TIPSv2: Advancing Vision-Language Pretraining with
Enhanced Patch-Text Alignment", CVPR 2026.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from backend.errors import ModelUnavailableError
from backend.models.text.spaces import TIPS_MODEL, tips_text_space
from backend.models.text.tokenizer import load_tokenizer, require_transformers
from backend.models.weights.state_dict import read_state_dict

TOKENIZER = "tipsv2_tokenizer"
"""Name in the catalogue."""
MOST_TOKENS = 64
"""Tokens of a phrase; what is beyond them is cut off."""
_HEAD_WIDTH = 64
_PREFIX = "text_encoder."
_NAMES = (
    (r"^token_embedding\.", "embeddings.token_embedding."),
    (r"^ln_final\.", "final_layer_norm."),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"\.ln_1\.", ".layer_norm1."),
    (r"\.ln_2\.", ".layer_norm2."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
"""From the publisher's names to transformers'."""


class Tipsv2TextEncoder:
    """Turns phrases into vectors: the mean over tokens of the last layer.

    Args:
        files: the weights under `TIPS_MODEL`, transformers' `tokenizer.json` under `TOKENIZER`.

    Raises:
        ConfigurationError: transformers is not installed.
        ModelUnavailableError: a file cannot be used.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        require_transformers()
        from transformers.models.tipsv2.configuration_tipsv2 import Tipsv2TextConfig
        from transformers.models.tipsv2.modeling_tipsv2 import Tipsv2TextModel

        path = files[TIPS_MODEL]
        state = tips_text_state(read_state_dict(path, is_mapped=True))
        try:
            vocabulary, width = state["embeddings.token_embedding.weight"].shape
            config = Tipsv2TextConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                intermediate_size=state["encoder.layers.0.mlp.fc1.weight"].shape[0],
                num_hidden_layers=len({name.split(".")[2] for name in state if name.startswith("encoder.layers.")}),
                num_attention_heads=max(1, width // _HEAD_WIDTH),
                max_position_embeddings=MOST_TOKENS,
            )
            network: Any = Tipsv2TextModel(config)
            self._network = network.eval().requires_grad_(False)
            self._network.load_state_dict(state)
        except (KeyError, ValueError, RuntimeError) as error:
            raise ModelUnavailableError(
                f"{path} must hold TIPSv2's text encoder, got other tensors ({str(error).splitlines()[0][:160]}); "
                "import the official model.safetensors"
            ) from error
        self._tokenizer = load_tokenizer(
            files[TOKENIZER], vocabulary=vocabulary, most_tokens=MOST_TOKENS, pads_to_most=True
        )
        self.text_space = tips_text_space(path)

    def encode(self, phrases: Sequence[str]) -> NDArray[np.float32]:
        """Encode P phrases as (P, D) float32 of unit length."""
        if not phrases:
            return np.zeros((0, self._network.config.hidden_size), np.float32)
        # The model was trained on lower case only.
        ids, mask = self._tokenizer([phrase.lower() for phrase in phrases])
        with torch.inference_mode():
            pooled: Tensor = self._network(input_ids=ids, attention_mask=mask).pooler_output
            return np.asarray(F.normalize(pooled.float(), dim=-1).numpy(), np.float32)


def tips_text_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the text encoder's tensors of a file in the publisher's layout, by transformers' names."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith(_PREFIX):
            continue
        short = name.removeprefix(_PREFIX)
        for pattern, replacement in _NAMES:
            short = re.sub(pattern, replacement, short)
        stem, _, kind = short.rpartition(".in_proj_")
        if stem:
            for part, one in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{stem}.{part}_proj.{kind}"] = one
        else:
            renamed[short] = tensor
    return renamed
