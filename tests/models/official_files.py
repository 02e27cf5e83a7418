"""Weights files with the names and the layout of the official ones, and with random content."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch

from backend.models.sam.networks import build_sam
from backend.models.weights.catalogue import KNOWN_WEIGHTS, KnownWeights

_SEED = 8
"""One with which masks are neither empty nor everything."""


def random_official_files(folder: Path) -> dict[str, Path]:
    """Those of Facebook's DINOv2 ViT-S/14 and of MobileSAM, by model. This SAM believes in its masks: some are kept."""
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        encoder = timm.create_model("vit_small_patch14_dinov2", num_classes=0)
    paths = {
        "vit_small_patch14_dinov2": folder / "dinov2_vits14_pretrain.pth",
        "mobile_sam": folder / "mobile_sam.pt",
    }
    torch.save({"mask_token": torch.zeros(1, 384), **encoder.state_dict()}, paths["vit_small_patch14_dinov2"])
    sam: Any = build_sam("mobile_sam", None, seed=_SEED)
    sam.mask_decoder.iou_prediction_head.layers[-1].bias.data.fill_(0.9)
    torch.save(sam.state_dict(), paths["mobile_sam"])
    return paths


def catalogue_of(paths: Mapping[str, Path]) -> tuple[KnownWeights, ...]:
    """`KNOWN_WEIGHTS` with sizes and digests of these files in the place of the official ones'."""

    def as_they_are(known: KnownWeights) -> KnownWeights:
        if known.name not in paths:
            return known
        content = paths[known.name].read_bytes()
        return replace(known, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    return tuple(as_they_are(known) for known in KNOWN_WEIGHTS)
