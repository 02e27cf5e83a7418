"""A reference's patches as rows of their own, and their summary: a bank reads the few that it draws.

A patch is its feature, its foreground coverage and its ignore weight, all float16, one after the other.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from backend.core.patches import PatchSummary, summarize_patches
from backend.core.types import Arrays, Json, Reference

_BYTES_A_ROW = 1900
"""Bound of a row of the table, unless a single patch is larger; see `tables.reference_patches`."""


@dataclass(frozen=True, eq=False, slots=True)
class PackedSummary:
    """A summary, and how the patches that it is of are packed.

    Attributes:
        summary: for the bank.
        depth: D, number of channels of a feature.
        patches_a_row: of the table; the last row of a reference may have fewer.
        text_crc32: of what `pack_text_features` packed.
    """

    summary: PatchSummary
    depth: int
    patches_a_row: int
    text_crc32: int

    @property
    def count(self) -> int:
        """Return the number of patches that are packed: those at twice the size follow the others."""
        fine = self.summary.fine
        return self.summary.count + (0 if fine is None else fine.count)


def pack_summary(reference: Reference) -> bytes:
    """Pack the summary of a reference's patches as safetensors bytes.

    Raises:
        BadInputError: shapes that don't agree.
    """
    summary, depth = summarize_patches(reference), reference.features.shape[1]
    arrays = _to_arrays(summary, depth)
    arrays["text_crc32"] = np.array([zlib.crc32(pack_text_features(reference))], np.int64)
    if summary.fine is not None:
        arrays.update({f"fine.{name}": array for name, array in _to_arrays(summary.fine, depth).items()})
    return bytes(safetensors.numpy.save(arrays))


def _to_arrays(summary: PatchSummary, depth: int) -> Arrays:
    bits = np.zeros((2, summary.count), bool)
    for stratum, rows in zip(bits, (summary.foreground_rows, summary.background_rows), strict=True):
        stratum[rows] = True
    arrays: Arrays = {
        "content_digest": np.frombuffer(summary.content_digest, np.uint8),
        "image_sample": np.frombuffer(summary.image_sample, np.uint8),
        "layout": np.array([summary.count, depth, _patches_a_row(depth), summary.is_finite], np.int64),
        "strata": np.packbits(bits, axis=1),
        "sums": np.array([*summary.weights, summary.mass], np.float64),
    }
    if summary.mean_object is not None:
        arrays["mean_object"] = np.ascontiguousarray(summary.mean_object)
    return arrays


def unpack_summary(packed: bytes, crc32: int, signature: str) -> PackedSummary:
    """Unpack a summary of `pack_summary`.

    Raises:
        ValueError: damaged.
    """
    if zlib.crc32(packed) != crc32:
        raise ValueError(f"the {len(packed)} bytes of its summary do not match their checksum")
    try:
        arrays = safetensors.numpy.load(packed)
        fine = {name.removeprefix("fine."): array for name, array in arrays.items() if name.startswith("fine.")}
        summary = _to_summary(arrays, signature, _to_summary(fine, signature, None) if fine else None)
        _, depth, patches_a_row, _ = (int(one) for one in arrays["layout"])
        text_crc32 = int(arrays["text_crc32"][0])
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"its summary is damaged: {error}") from error
    return PackedSummary(summary, depth, patches_a_row, text_crc32)


def _to_summary(arrays: Arrays, signature: str, fine: PatchSummary | None) -> PatchSummary:
    count, _, _, is_finite = (int(one) for one in arrays["layout"])
    strata = np.unpackbits(arrays["strata"].astype(np.uint8, copy=False), axis=1, count=count)
    foreground, background = (np.flatnonzero(bits) for bits in strata)
    small = np.uint16 if count <= np.iinfo(np.uint16).max else np.uint32
    of_foreground, of_background, mass = (float(one) for one in arrays["sums"])
    mean_object = arrays.get("mean_object")
    return PatchSummary(
        signature,
        arrays["content_digest"].tobytes(),
        arrays["image_sample"].tobytes(),
        count,
        foreground.astype(small),
        background.astype(small),
        (of_foreground, of_background),
        mass,
        None if mean_object is None else mean_object.astype(np.float32, copy=False),
        bool(is_finite),
        fine,
    )


def pack_patches(reference: Reference) -> Iterator[Json]:
    """Yield the columns of `tables.reference_patches` for all patches of a reference, except the reference's id."""
    parts = [
        np.column_stack([one.features, one.foreground_coverage, one.ignore_weight])
        for one in (reference, reference.fine)
        if one is not None
    ]
    patches = np.ascontiguousarray(np.concatenate(parts), np.float16)
    step = _patches_a_row(reference.features.shape[1])
    for first_row in range(0, len(patches), step):
        content = patches[first_row : first_row + step].tobytes()
        yield {"first_row": first_row, "crc32": zlib.crc32(content), "patches": content}


def unpack_patches(content: bytes, crc32: int, depth: int) -> NDArray[np.float16]:
    """Unpack one row of `pack_patches`: (n, D + 2) float16, n patches.

    Raises:
        ValueError: damaged.
    """
    if zlib.crc32(content) != crc32:
        raise ValueError(f"{len(content)} bytes of its features do not match their checksum")
    return np.frombuffer(content, np.float16).reshape(-1, depth + 2)


def pack_text_features(reference: Reference) -> bytes:
    """Pack the patches' features in the space of the text encoder; b"" without any."""
    if reference.text_features is None:
        return b""
    return bytes(safetensors.numpy.save({"text_features": np.ascontiguousarray(reference.text_features, np.float16)}))


def unpack_text_features(packed: bytes, crc32: int) -> NDArray[np.float16] | None:
    """Unpack what `pack_text_features` packed.

    Raises:
        ValueError, KeyError, SafetensorError: damaged.
    """
    if zlib.crc32(packed) != crc32:
        raise ValueError(f"{len(packed)} bytes of its features for phrases do not match their checksum")
    return safetensors.numpy.load(packed)["text_features"] if packed else None


def patches_to_reference(
    patches: NDArray[np.float16], summary: PatchSummary, text_features: NDArray[np.float16] | None
) -> Reference:
    """Make a reference of all its patches, (R, D + 2) float16, and of what `unpack_text_features` returned."""
    usual, rest = np.split(patches, [summary.count])
    fine = None if summary.fine is None else patches_to_reference(rest, summary.fine, None)
    features, coverage, weight = (np.ascontiguousarray(part) for part in (usual[:, :-2], usual[:, -2], usual[:, -1]))
    return Reference(features, coverage, weight, summary.signature, text_features, fine)


def _patches_a_row(depth: int) -> int:
    return max(1, _BYTES_A_ROW // (2 * (depth + 2)))
