"""Prompts decoded by the forward passes of segment-anything, mobile_sam and sam2 themselves.

These are slower than `SamDecoder`: a reference to compare it with, and the way back should it differ with real weights.
"""

from typing import Any

import torch
from torch import Tensor, nn

from backend.models.sam.prompt_decoding import NO_POINT, TOP_LEFT


class PackageDecoder(nn.Module):
    """Joins SAM's own prompt encoder and mask decoder into one network, as `SamDecoder`.

    Args:
        prompt_encoder, mask_decoder: of a `Sam`.
    """

    always_ends = False

    def __init__(self, prompt_encoder: Any, mask_decoder: Any) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder

    def begin(self, images: tuple[Tensor, ...], masks: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return image embeddings and mask inputs: the package computes all else for each prompt."""
        (image_embedding,) = images
        return image_embedding, masks

    def forward(
        self, begun: tuple[Tensor, Tensor | None], which: Tensor, points: Tensor, is_multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """Decode as `SamDecoder.forward`, with a pass for each image: the package takes no more."""
        images, masks = begun
        own_masks = None if masks is None else masks[which]
        sparse, dense = package_prompt(self.prompt_encoder, points, own_masks, takes_boxes=True)
        order, answers = [], []
        for index in range(len(images)):
            rows = torch.nonzero(which == index)[:, 0]
            if not len(rows):
                continue
            order.append(rows)
            answers.append(
                self.mask_decoder(
                    image_embeddings=images[index][None],
                    image_pe=self.prompt_encoder.get_dense_pe(),
                    sparse_prompt_embeddings=sparse[rows],
                    dense_prompt_embeddings=dense[rows],
                    multimask_output=is_multimask,
                )
            )
        place = torch.cat(order).argsort()
        logits, predicted_iou = (torch.cat(parts)[place] for parts in zip(*answers, strict=True))
        return logits, predicted_iou


def package_prompt(
    prompt_encoder: Any, points: Tensor, masks: Tensor | None, *, takes_boxes: bool
) -> tuple[Tensor, Tensor]:
    """Embed P prompts of one shape by a package's own prompt encoder.

    Args:
        prompt_encoder: a `PromptEncoder`.
        points: (P, T, 3) float32 of x, y and label, as `PointTokens` takes them.
        masks: (P, 1, 4h, 4w) float32 mask inputs.
        takes_boxes: a box is given as one, not as two points.

    Returns:
        (P, T', C) sparse and (P, C, h, w) dense embeddings.
    """
    labels = points[0, :, 2].tolist()
    # The package itself ends the points with one that is none.
    is_point = [label != NO_POINT and not (takes_boxes and label >= TOP_LEFT) for label in labels]
    corners = [index for index, label in enumerate(labels) if takes_boxes and label >= TOP_LEFT]
    own = points[:, is_point]
    sparse, dense = prompt_encoder(
        points=(own[..., :2], own[..., 2]) if own.shape[1] else None,
        boxes=points[:, corners, :2].flatten(1) if corners else None,
        masks=masks,
    )
    return sparse, dense
