"""Tokenizers of text encoders, read from a local `tokenizer.json`."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backend.errors import ConfigurationError, ModelUnavailableError

Tokenize = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
"""Phrases -> token ids and attention mask, both (P, L) int64."""


def require_transformers() -> None:
    """Check that the package of the text encoders is installed.

    Raises:
        ConfigurationError: it is not; says which command helps.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ConfigurationError("phrases need the package transformers: pip install 'softmatcher-label-studio[text]'")


def load_tokenizer(path: Path, *, most_tokens: int, pads_to_most: bool = False, padding: str = "<pad>") -> Tokenize:
    """Return what turns phrases into tokens.

    Args:
        path: of a `tokenizer.json`.
        most_tokens: tokens of a phrase; what is beyond them is cut off.
        pads_to_most: fill all phrases up to `most_tokens`, otherwise to the longest.
        padding: the token that fills them.

    Raises:
        ModelUnavailableError: the file is no tokenizer.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer: Any = Tokenizer.from_file(str(path))
        tokenizer.enable_truncation(most_tokens)
        padding_id = tokenizer.token_to_id(padding)
        tokenizer.enable_padding(
            pad_id=padding_id or 0, pad_token=padding, length=most_tokens if pads_to_most else None
        )
    except Exception as error:  # the library raises plain Exception
        raise ModelUnavailableError(
            f"{path} must be a tokenizer.json, got {str(error).splitlines()[0][:160]}; import it again"
        ) from error

    def tokenize(phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
        encoded = tokenizer.encode_batch(list(phrases))
        return torch.tensor([one.ids for one in encoded]), torch.tensor([one.attention_mask for one in encoded])

    return tokenize
