"""CLIP's text encoder through transformers, read from local files, never from a hub.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021;
https://huggingface.co/openai/clip-vit-base-patch16, MIT.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from backend.errors import ModelUnavailableError
from backend.models.text.spaces import CLIP_MODEL, clip_text_space
from backend.models.text.tokenizer import load_tokenizer, require_transformers
from backend.models.weights.state_dict import read_state_dict

TOKENIZER = "clip_tokenizer"
"""Name in the catalogue."""
MOST_TOKENS = 77
"""Tokens of a phrase, start and end among them; what is beyond them is cut off."""
_HEAD_WIDTH = 64


class ClipTextEncoder:
    """Turns phrases into vectors: CLIP's projected end-of-text token.

    Args:
        files: the weights in transformers' layout under `CLIP_MODEL`, its `tokenizer.json` under `TOKENIZER`.

    Raises:
        ConfigurationError: transformers is not installed.
        ModelUnavailableError: a file cannot be used.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        require_transformers()
        from transformers.models.clip.configuration_clip import CLIPTextConfig
        from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection

        path = files[CLIP_MODEL]
        state = {
            name: tensor
            for name, tensor in read_state_dict(path, is_mapped=True).items()
            if name.startswith(("text_model.", "text_projection.")) and not name.endswith("position_ids")
        }
        try:
            vocabulary, width = state["text_model.embeddings.token_embedding.weight"].shape
            config = CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                projection_dim=state["text_projection.weight"].shape[0],
                intermediate_size=state["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
                num_hidden_layers=len({name.split(".")[3] for name in state if ".encoder.layers." in name}),
                num_attention_heads=max(1, width // _HEAD_WIDTH),
                max_position_embeddings=state["text_model.embeddings.position_embedding.weight"].shape[0],
                eos_token_id=vocabulary - 1,
            )
            network: Any = CLIPTextModelWithProjection(config)
            self._network = network.eval().requires_grad_(False)
            self._network.load_state_dict(state)
        except (KeyError, ValueError, RuntimeError) as error:
            raise ModelUnavailableError(
                f"{path} must hold CLIP's text encoder, got other tensors ({str(error).splitlines()[0][:160]}); "
                "import the official pytorch_model.bin"
            ) from error
        self._tokenizer = load_tokenizer(
            files[TOKENIZER], vocabulary=vocabulary, most_tokens=MOST_TOKENS, padding="<|endoftext|>"
        )
        self.text_space = clip_text_space(path)

    def encode(self, phrases: Sequence[str]) -> NDArray[np.float32]:
        """Encode P phrases as (P, D) float32 of unit length."""
        if not phrases:
            return np.zeros((0, self._network.config.projection_dim), np.float32)
        ids, mask = self._tokenizer(phrases)
        with torch.inference_mode():
            embeds: Tensor = self._network(input_ids=ids, attention_mask=mask).text_embeds
            return np.asarray(F.normalize(embeds.float(), dim=-1).numpy(), np.float32)
