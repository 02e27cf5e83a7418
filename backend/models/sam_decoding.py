"""One pass of SAM's mask decoder over prompts of one shape, each with its own image."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from backend.models.accelerator import OnDevice
from backend.models.sam_mask_decoder import MaskDecoder
from backend.models.sam_prompts import SamPrompt

MaskLogits = NDArray[np.float32]
Embedding = Mapping[str, NDArray[np.generic]]


class SamDecoder(nn.Module):
    """Prompt encoder and mask decoder as one network, so that they lie on one device and fall back together."""

    def __init__(self, prompt_encoder: Any, mask_decoder: Any) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = MaskDecoder(mask_decoder, prompt_encoder.get_dense_pe())

    def begin(self, images: tuple[Tensor, ...], masks: Tensor | None) -> Any:
        """What prompts with the same image and mask input share: `forward` takes it.

        Args:
            images: each level (M, C, h, w) float32 of the image embeddings.
            masks: (M, 1, 4h, 4w) float32 mask inputs.
        """
        (image_embedding,) = images
        encoder: Any = self.prompt_encoder
        dense = encoder.no_mask_embed.weight[:, :, None, None] if masks is None else encoder.mask_downscaling(masks)
        return self.mask_decoder.begin(image_embedding + dense)

    def forward(
        self,
        begun: Any,
        which: Tensor,
        points: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        is_multimask: bool,
    ) -> tuple[Tensor, Tensor]:
        """P prompts to (P, 3 or 1, 4h, 4w) logits and (P, 3 or 1) predicted IoU.

        Args:
            begun: what `begin` made of M images.
            which: (P,) int64: each prompt's image.
            points: (P, T, 2) float32 in the input frame, with their labels, (P, T) float32.
            boxes: (P, 4) float32.
            is_multimask: three masks a prompt.
        """
        given = None if points is None else (points, labels)
        sparse, _ = self.prompt_encoder(points=given, boxes=boxes, masks=None)
        logits, predicted_iou = self.mask_decoder(begun, which, sparse.expand(len(which), -1, -1))
        wanted = slice(1, None) if is_multimask else slice(0, 1)
        return logits[:, wanted], predicted_iou[:, wanted]


class Images:
    """Image embeddings, brought to a device once for all the passes of a call.

    Args:
        embeddings: of the images.
        levels: names of their arrays that the decoder takes, coarsest first.
    """

    def __init__(self, embeddings: Sequence[Embedding], levels: Sequence[str]) -> None:
        self._here = [[torch.from_numpy(one[level]) for one in embeddings] for level in levels]
        self._there: dict[torch.device, list[Tensor]] = {}
        self._begun: tuple[Any, Any] = None, None

    @property
    def cells(self) -> int:
        """Of one image's coarsest level."""
        return self._here[0][0].shape[-1] * self._here[0][0].shape[-2]

    def of(self, owners: Sequence[int], device: torch.device) -> tuple[Tensor, ...]:
        """Each level (N, C, h, w) float32 of N of them."""
        if device not in self._there:
            self._there[device] = [torch.stack([one.to(device).float() for one in level]) for level in self._here]
        return tuple(level[list(owners)] for level in self._there[device])

    def begun(self, asked: Sequence[tuple[int, MaskLogits | None]], network: Any, device: torch.device) -> Any:
        """What `SamDecoder.begin` makes of images and their mask inputs; if they were those of the pass before, it is
        done already."""
        key = device, [(owner, id(mask)) for owner, mask in asked]
        if self._begun[0] != key:
            masks = [torch.from_numpy(mask) for _, mask in asked if mask is not None]
            stacked = torch.stack(masks)[:, None].to(device) if masks else None
            self._begun = key, network.begin(self.of([owner for owner, _ in asked], device), stacked)
        return self._begun[1]


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
    asked = [(owner, prompt.mask_logits) for owner, prompt in zip(owners, group, strict=True)]

    def forward(network: nn.Module, device: torch.device, part: slice) -> tuple[Tensor, Tensor]:
        points, labels, boxes = (None if one is None else one.to(device) for one in _stack(group[part]))
        distinct = list({(owner, id(mask)): (owner, mask) for owner, mask in asked[part]}.values())
        place = {(owner, id(mask)): index for index, (owner, mask) in enumerate(distinct)}
        which = torch.tensor([place[owner, id(mask)] for owner, mask in asked[part]]).to(device)

        def run() -> tuple[Tensor, Tensor]:
            answer: tuple[Tensor, Tensor] = network(
                images.begun(distinct, network, device), which, points, labels, boxes, is_multimask
            )
            return answer

        logits, predicted_iou = decoder.timed(device, run)
        return logits.float(), predicted_iou.float()

    return forward


def _stack(group: Sequence[SamPrompt]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    first = group[0]
    points = labels = boxes = None
    if len(first.points_xy):
        points = torch.from_numpy(np.stack([prompt.points_xy for prompt in group]))
        labels = torch.from_numpy(np.stack([prompt.point_labels for prompt in group]))
    if first.box_xyxy is not None:
        boxes = torch.from_numpy(np.stack([prompt.box_xyxy for prompt in group if prompt.box_xyxy is not None]))
    return points, labels, boxes
