"""Identification of files offered as weights: tensors or something else, and of which known model's layout."""

import json
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from backend.errors import BadInputError, ModelUnavailableError
from backend.models.weights.state_dict import read_state_dict

_POINTER = b"version https://git-lfs"
_MOST_TOKENIZER_BYTES = 64_000_000
_ZIP = b"PK\x03\x04"
_SAM_SIZES = {768: "sam_vit_b", 1024: "sam_vit_l", 1280: "sam_vit_h"}
_SAM2_SIZES = {(96, 12): "tiny", (96, 16): "small", (112, 24): "base_plus", (144, 48): "large"}
_DINOV2_SIZES = {384: "small", 768: "base", 1024: "large"}
"""Width of the tokens (and number of blocks) of each size."""


def reason_not_weights(path: Path) -> str | None:
    """Return why a file holds no weights, None if it does. It is read as a model reads it, with as much memory.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(64)
    try:
        state = read_state_dict(path)  # mapped, PyTorch does not hold a tensor's size to that of its record
    except ModelUnavailableError as error:
        return _kind_by_head(head, path) or str(error).removeprefix(f"{path} ").partition("; ")[0]
    if not any(tensor.numel() for tensor in state.values()):
        return "its tensors are empty"
    return None


def _kind_by_head(head: bytes, path: Path) -> str | None:
    """Return what a file that cannot be read as weights seems to be, None if its first bytes do not tell."""
    if not head:
        return "it is empty"
    if head.startswith(_POINTER):
        return "it is a pointer of Git LFS, not the file itself: run `git lfs pull` where it comes from"
    if head.lstrip().startswith(b"<"):
        return "it is a web page, not weights: a proxy or a login answered in its place"
    if head.startswith(_ZIP) and not _has_directory(path):
        size_bytes = path.stat().st_size
        return f"it is cut off after {size_bytes} bytes: the zip's directory, which comes last, is missing or broken"
    return None


def _has_directory(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # one that is there and wrong
        return False


def known_layout(path: Path) -> str | None:
    """Return the model of the catalogue whose network a checkpoint fills, None if it fills none of them.

    Raises:
        ModelUnavailableError: it holds no weights.
    """
    name = _layout_by_sizes(read_state_dict(path, is_mapped=True))
    if name is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of filling a network that has sizes only
            _fill(name, path)
    except Exception:  # timm's converters stumble on whatever is not theirs
        return None
    return name


def _layout_by_sizes(state: Mapping[str, Tensor]) -> str | None:
    """Return the model whose sizes some telling tensors have."""
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    if "image_encoder.patch_embed.seq.0.c.weight" in shapes:
        return "mobile_sam"
    if "image_encoder.pos_embed" in shapes:
        return _SAM_SIZES.get(_side(shapes["image_encoder.pos_embed"], -1))
    if "image_encoder.trunk.patch_embed.proj.weight" in shapes:
        blocks = {key.split(".")[3] for key in shapes if key.startswith("image_encoder.trunk.blocks.")}
        size = _SAM2_SIZES.get((_side(shapes["image_encoder.trunk.patch_embed.proj.weight"], 0), len(blocks)))
        return None if size is None else f"sam2.1_hiera_{size}"
    if "cls_token" in shapes and shapes.get("patch_embed.proj.weight", ())[-2:] == (14, 14):
        size = _DINOV2_SIZES.get(_side(shapes["cls_token"], -1))
        registers = "reg4_" if {"register_tokens", "reg_token"} & shapes.keys() else ""
        return None if size is None else f"vit_{size}_patch14_{registers}dinov2"
    return None


def _side(shape: tuple[int, ...], axis: int) -> int:
    return shape[axis] if shape else 0


def _fill(name: str, path: Path) -> None:
    """Put a file into the network of a model, which is thrown away.

    Raises:
        ModelUnavailableError: it does not fit, or the network's package is not installed.
    """
    from backend.models.encoders.timm_networks import create_network, load_weights
    from backend.models.sam.names import SAM_MODELS
    from backend.models.sam.networks import build_sam
    from backend.models.sam.sam2_networks import SAM2_MODELS, build_sam2

    if name in SAM2_MODELS:
        build_sam2(name, path)
    elif name == "mobile_sam":  # asks for values while it is built
        build_sam(name, path)
    else:
        with torch.device("meta"):  # sizes without memory
            if name in SAM_MODELS:
                build_sam(name, path)
            else:
                load_weights(create_network(name, {}, seed=None), path, name)


def require_tokenizer(path: Path) -> None:
    """Check that a file is a `tokenizer.json` or a model of SentencePiece.

    Raises:
        BadInputError: it cannot be read, or is something else.
    """
    expected = f"{path} must be a tokenizer.json or a SentencePiece model"
    try:
        size_bytes = path.stat().st_size
        content = path.read_bytes() if size_bytes <= _MOST_TOKENIZER_BYTES else b""
    except OSError as error:
        raise BadInputError(f"{expected}, got a file that cannot be read ({error})") from error
    if size_bytes > _MOST_TOKENIZER_BYTES:
        raise BadInputError(f"{expected} of up to {_MOST_TOKENIZER_BYTES / 1e6:.0f} MB, got {size_bytes / 1e6:.0f} MB")
    if not content.lstrip().startswith(b"{"):
        if not _is_sentencepiece(content):
            raise BadInputError(f"{expected}, got neither")
        return
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{expected}, got no JSON ({type(error).__name__})") from error
    if not isinstance(parsed, dict) or not isinstance(parsed.get("model"), dict):
        raise BadInputError(f"{expected}, got other JSON")


def _is_sentencepiece(content: bytes) -> bool:
    """Return whether a file begins as SentencePiece's protocol buffer: with its first piece, a text and its score."""
    # Field 1 of the file is a piece, field 1 of a piece its text; lengths of pieces are below 128 bytes.
    if len(content) < 16 or content[0] != 0x0A or content[2] != 0x0A:
        return False
    piece_bytes, text_bytes = content[1], content[3]
    try:
        content[4 : 4 + text_bytes].decode()
    except UnicodeDecodeError:
        return False
    return 0 < text_bytes <= piece_bytes - 2 and len(content) > 2 + piece_bytes


def require_weights(path: Path) -> None:
    """Check that a file holds weights.

    Raises:
        BadInputError: it cannot be read, or holds none.
    """
    try:
        reason = reason_not_weights(path)
    except OSError as error:
        raise BadInputError(f"weights must be a file that can be read, got {path} ({error})") from error
    if reason is not None:
        raise BadInputError(f"{path} must hold weights, PyTorch's or safetensors, got something else: {reason}")
