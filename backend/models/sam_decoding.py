"""One pass of SAM's mask decoder over prompts of one shape, each with its own image."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from backend.models.accelerator import OnDevice
from backend.models.sam_prompts import SamPrompt

Embedding = Mapping[str, NDArray[np.generic]]


class SamDecoder(nn.Module):
    """Prompt encoder and mask decoder as one network, so that they lie on one device and fall back together."""

    def __init__(self, prompt_encoder: nn.Module, mask_decoder: nn.Module) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder

    def forward(
        self,
        images: tuple[Tensor, ...],
        points: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        masks: Tensor | None,
        is_multimask: bool,
    ) -> tuple[Tensor, Tensor]:
        """N prompts, each with its image's (C, h, w) embedding, to (N, 3 or 1, 4h, 4w) logits, (N, 3 or 1) predicted
        IoU.

        The decoder's own `forward` takes one image for all prompts; this is what it does with each of them.
        Source: segment_anything.modeling.mask_decoder (Apache 2.0), `predict_masks`.
        """
        (image_embedding,) = images
        given = None if points is None else (points, labels)
        sparse, dense = self.prompt_encoder(points=given, boxes=boxes, masks=masks)
        decoder: Any = self.mask_decoder
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([own.expand(len(sparse), -1, -1), sparse], dim=1)
        place = self.prompt_encoder.get_dense_pe().expand(len(sparse), -1, -1, -1)  # type: ignore[operator]
        answer, image = decoder.transformer(image_embedding + dense, place, tokens)
        upscaled = decoder.output_upscaling(image.transpose(1, 2).reshape(image_embedding.shape))
        wanted = slice(1, None) if is_multimask else slice(0, 1)
        weights = torch.stack(
            [decoder.output_hypernetworks_mlps[one](answer[:, 1 + one]) for one in range(decoder.num_mask_tokens)][
                wanted
            ],
            dim=1,
        )
        logits = torch.einsum("nkc,nchw->nkhw", weights, upscaled)
        return logits, decoder.iou_prediction_head(answer[:, 0])[:, wanted]


class Images:
    """Image embeddings, brought to a device once for all the passes of a call.

    Args:
        embeddings: of the images.
        levels: names of their arrays that the decoder takes, coarsest first.
    """

    def __init__(self, embeddings: Sequence[Embedding], levels: Sequence[str]) -> None:
        self._here = [[torch.from_numpy(one[level]) for one in embeddings] for level in levels]
        self._there: dict[torch.device, list[Tensor]] = {}

    @property
    def cells(self) -> int:
        """Of one image's coarsest level."""
        return self._here[0][0].shape[-1] * self._here[0][0].shape[-2]

    def of(self, owners: Sequence[int], device: torch.device) -> tuple[Tensor, ...]:
        """Each level (N, C, h, w) float32: for each of N prompts its image's."""
        if device not in self._there:
            self._there[device] = [torch.stack([one.to(device).float() for one in level]) for level in self._here]
        return tuple(
            level.expand(len(owners), -1, -1, -1) if len(level) == 1 else level[list(owners)]
            for level in self._there[device]
        )


def forward_of(
    decoder: OnDevice, images: Images, owners: Sequence[int], group: Sequence[SamPrompt], is_multimask: bool
) -> Callable[[nn.Module, torch.device, slice], tuple[Tensor, Tensor]]:
    """What `OnDevice.run_parts` calls: the decoder's pass over a part of the prompts, all of one shape.

    Args:
        decoder: whose pass it is.
        images: embeddings.
        owners: for each prompt the index of its image.
        group: the prompts.
        is_multimask: three masks a prompt.
    """

    def forward(network: nn.Module, device: torch.device, part: slice) -> tuple[Tensor, Tensor]:
        points, labels, boxes, masks = (None if one is None else one.to(device) for one in _stack(group[part]))
        seen = images.of(owners[part], device)
        logits, predicted_iou = decoder.timed(device, lambda: network(seen, points, labels, boxes, masks, is_multimask))
        return logits.float(), predicted_iou.float()

    return forward


def _stack(group: Sequence[SamPrompt]) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    first = group[0]
    points = labels = boxes = masks = None
    if len(first.points_xy):
        points = torch.from_numpy(np.stack([prompt.points_xy for prompt in group]))
        labels = torch.from_numpy(np.stack([prompt.point_labels for prompt in group]))
    if first.box_xyxy is not None:
        boxes = torch.from_numpy(np.stack([prompt.box_xyxy for prompt in group if prompt.box_xyxy is not None]))
    if first.mask_logits is not None:
        stacked = np.stack([prompt.mask_logits for prompt in group if prompt.mask_logits is not None])
        masks = torch.from_numpy(stacked)[:, None]
    return points, labels, boxes, masks
