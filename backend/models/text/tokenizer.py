"""Tokenizers of text encoders, read from a local file."""

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


def is_tokenizer_json(head: bytes) -> bool:
    """Return whether a file that begins with these bytes is JSON, and no SentencePiece model."""
    return head.lstrip().startswith(b"{")


def load_tokenizer(
    path: Path, *, vocabulary: int, most_tokens: int, pads_to_most: bool = False, padding: str = "<pad>"
) -> Tokenize:
    """Return what turns phrases into tokens.

    Args:
        path: of a `tokenizer.json`, or of a model of SentencePiece (`tokenizer.model`, `spiece.model`).
        vocabulary: number of tokens that the text encoder knows.
        most_tokens: tokens of a phrase; what is beyond them is cut off.
        pads_to_most: fill all phrases up to `most_tokens`, otherwise to the longest.
        padding: the token that fills them; a SentencePiece model names its own.

    Raises:
        ConfigurationError: the package that reads the file is not installed.
        ModelUnavailableError: the file is no tokenizer, or another model's.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelUnavailableError(f"{path} must be a tokenizer that can be read, got {error}; import it") from error
    length = most_tokens if pads_to_most else None
    if is_tokenizer_json(content[:64]):
        size, tokenize = _of_json(path, content, most_tokens, length, padding)
    else:
        size, tokenize = _of_sentencepiece(path, content, most_tokens, length)
    if size > vocabulary:
        raise ModelUnavailableError(
            f"{path} must be the tokenizer of its text encoder, which knows {vocabulary} tokens, got one of {size}; "
            "import the tokenizer of the same model"
        )
    return tokenize


def _of_json(path: Path, content: bytes, most_tokens: int, length: int | None, padding: str) -> tuple[int, Tokenize]:
    from tokenizers import Tokenizer

    try:
        tokenizer: Any = Tokenizer.from_str(content.decode())
        tokenizer.enable_truncation(most_tokens)
        padding_id = tokenizer.token_to_id(padding)
        tokenizer.enable_padding(pad_id=padding_id or 0, pad_token=padding, length=length)
    except Exception as error:  # the library raises plain Exception
        raise _no_tokenizer(path, error) from error

    def tokenize(phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
        encoded = tokenizer.encode_batch(list(phrases))
        return torch.tensor([one.ids for one in encoded]), torch.tensor([one.attention_mask for one in encoded])

    return int(tokenizer.get_vocab_size()), tokenize


def _of_sentencepiece(path: Path, content: bytes, most_tokens: int, length: int | None) -> tuple[int, Tokenize]:
    try:
        import sentencepiece
    except ImportError as error:
        raise ConfigurationError(
            f"{path} is a SentencePiece model: pip install 'softmatcher-label-studio[text]'"
        ) from error
    processor: Any = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(content)
    except RuntimeError as error:
        raise _no_tokenizer(path, error) from error
    padding_id = max(processor.pad_id(), 0)

    def tokenize(phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
        cut = [ids[:most_tokens] for ids in processor.encode(list(phrases))]
        width = max([length or 0, 1, *map(len, cut)])
        ids = torch.full((len(cut), width), padding_id)
        mask = torch.zeros((len(cut), width), dtype=torch.int64)
        for row, one in enumerate(cut):
            ids[row, : len(one)] = torch.tensor(one, dtype=torch.int64)
            mask[row, : len(one)] = 1
        return ids, mask

    return int(processor.vocab_size()), tokenize


def _no_tokenizer(path: Path, error: Exception) -> ModelUnavailableError:
    first = (str(error).splitlines() or [""])[0][:160]
    return ModelUnavailableError(
        f"{path} must be a tokenizer.json or a SentencePiece model, got {first}; import it again"
    )
