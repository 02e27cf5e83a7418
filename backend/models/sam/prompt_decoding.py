"""SAM's prompts decoded: those of one shape share passes, each with its own image."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from backend.models.device.on_device import DeviceRunner
from backend.models.sam.mask_decoder import MaskDecoder
from backend.models.sam.prompts import SamPrompt
from backend.models.segmenters import Embedding

T = TypeVar("T")

NO_POINT, TOP_LEFT, BOTTOM_RIGHT = -1, 2, 3
"""Labels beside those of points: of the end of a list of points, and of a box's corners."""
MaskLogits = NDArray[np.float32]
Finish = Callable[[Tensor, Tensor, Sequence[int]], list[T]]
"""Takes (N, C, 256, 256) logits, (N, C) predicted IoU, and the positions of these N prompts; gives one answer each."""
_BYTES_A_CELL = 9_000
"""Memory of a decoded prompt for each cell of the image embedding: measured, with the upscaled maps in it."""
_DECODE_MB_ON_CPU = 80.0
"""Memory of a pass on a CPU: two prompts, more do not fit its caches; measured: a prompt of eight takes 0.76 of the
time of a lone one."""
_DECODE_SHARE_OF_GPU = 1 / 16
"""Share of a GPU's memory that a pass takes: 29 prompts with 16 GB, 145 with 80 GB."""


class PointTokens(nn.Module):
    """Embeds points and boxes as a prompt encoder of SAM or SAM 2 does, without a wait for the device.

    The package looks for points of each label and changes those: a GPU is waited for six times a pass. Here a label
    chooses its row of a table.

    Args:
        prompt_encoder: a `PromptEncoder` of segment-anything or sam2, its weights loaded.

    Source: segment_anything.modeling.prompt_encoder (Apache 2.0).
    """

    def __init__(self, prompt_encoder: Any) -> None:
        super().__init__()
        kinds = [prompt_encoder.not_a_point_embed, *prompt_encoder.point_embeddings]
        self._kinds = nn.Buffer(torch.cat([kind.weight for kind in kinds]).detach())
        height, width = prompt_encoder.input_image_size
        frequencies: Tensor = prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
        self._frequencies = nn.Buffer(2 * math.pi * frequencies.detach())
        self._to_unit = nn.Buffer(torch.tensor([2 / width, 2 / height]), persistent=False)

    def forward(self, points: Tensor) -> Tensor:
        """Embed (P, T, 3) float32 of x, y in the input frame and label as (P, T, C) tokens."""
        labels = points[..., 2].long()
        # A pixel's index is its centre; the input frame lies between -1 and 1.
        angles = ((points[..., :2] + 0.5) * self._to_unit - 1) @ self._frequencies
        places = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return places * (labels != NO_POINT)[..., None] + self._kinds[labels - NO_POINT]


def mask_input(prompt_encoder: Any, masks: Tensor | None) -> Tensor:
    """Return what mask inputs (M, 1, 4h, 4w) add to image embeddings, (M, C, h, w); without any (1, C, 1, 1)."""
    added: Tensor = (
        prompt_encoder.no_mask_embed.weight[:, :, None, None]
        if masks is None
        else prompt_encoder.mask_downscaling(masks)
    )
    return added


class SamDecoder(nn.Module):
    """Joins prompt encoder and mask decoder into one network: they lie on one device and fall back together."""

    always_ends = False
    """Without a box the points end with one that is none; SAM 2's end so in any case."""

    def __init__(self, prompt_encoder: Any, mask_decoder: Any) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder
        self._tokens = PointTokens(prompt_encoder)
        self.mask_decoder = MaskDecoder(mask_decoder, prompt_encoder.get_dense_pe())

    def begin(self, images: tuple[Tensor, ...], masks: Tensor | None) -> Any:
        """Compute what prompts with the same image and mask input share, for `forward`.

        Args:
            images: each level (M, C, h, w) float32 of the image embeddings.
            masks: (M, 1, 4h, 4w) float32 mask inputs.
        """
        (image_embedding,) = images
        return self.mask_decoder.begin(image_embedding + mask_input(self.prompt_encoder, masks))

    def forward(self, begun: Any, which: Tensor, points: Tensor, is_multimask: bool) -> tuple[Tensor, Tensor]:
        """Decode P prompts to (P, 3 or 1, 4h, 4w) logits and (P, 3 or 1) predicted IoU.

        Args:
            begun: what `begin` made of M images.
            which: (P,) int64: each prompt's image.
            points: (P, T, 3) float32 as `PointTokens` takes them.
            is_multimask: three masks a prompt.
        """
        logits, predicted_iou = self.mask_decoder(begun, which, self._tokens(points))
        wanted = slice(1, None) if is_multimask else slice(0, 1)
        return logits[:, wanted], predicted_iou[:, wanted]


class Images:
    """Copies image embeddings to a device once for all the passes of a call.

    Args:
        embeddings: of the images.
        levels: names of their arrays that the decoder takes, coarsest first.
    """

    def __init__(self, embeddings: Sequence[Embedding], levels: Sequence[str]) -> None:
        self._here = [[torch.from_numpy(one[level]) for one in embeddings] for level in levels]
        self._there: dict[torch.device, list[list[Tensor]]] = {}
        self._begun: tuple[Any, Any] = None, None

    @property
    def cells(self) -> int:
        """Return the number of cells of one image's coarsest level."""
        return self._here[0][0].shape[-1] * self._here[0][0].shape[-2]

    def of(self, owners: Sequence[int], device: torch.device) -> tuple[Tensor, ...]:
        """Return each level (N, C, h, w) float32 of N images."""
        if device not in self._there:
            self._there[device] = [[one.to(device).float() for one in level] for level in self._here]
        # Not by a list of indices, which would be copied there first.
        return tuple(torch.stack([level[owner] for owner in owners]) for level in self._there[device])

    def begun(self, asked: Sequence[tuple[int, MaskLogits | None]], network: Any, device: torch.device) -> Any:
        """Return what `SamDecoder.begin` makes of images and their mask inputs.

        If they are those of the pass before, nothing is computed again.
        """
        key = device, [(owner, id(mask)) for owner, mask in asked]
        if self._begun[0] != key:
            masks = [torch.from_numpy(mask) for _, mask in asked if mask is not None]
            stacked = torch.stack(masks)[:, None].to(device) if masks else None
            self._begun = key, network.begin(self.of([owner for owner, _ in asked], device), stacked)
        return self._begun[1]


class PromptDecoder:
    """Decodes prompts of any images where the decoder's network lies.

    Args:
        network: prompt encoder and mask decoder as one network, as `SamDecoder`.
        levels: names of an embedding's arrays that it takes.
        device: where it runs.
        decode_mb: see `SamOptions`.
    """

    def __init__(self, network: nn.Module, levels: Sequence[str], device: torch.device, *, decode_mb: float) -> None:
        self._levels = levels
        self._decode_mb = decode_mb
        # Eight milliseconds of a decoder are not worth the precision of its mask borders.
        self.runner = DeviceRunner(network, device, uses_half=False, is_urgent=True)

    def decode(
        self,
        embeddings: Sequence[Embedding],
        owners: Sequence[int],
        prompts: Sequence[SamPrompt],
        finish: Finish[T],
        *,
        is_multimask: bool,
    ) -> list[T]:
        """Decode prompts, each as if it were alone; what becomes of the logits is up to `finish`, on the device.

        Prompts of one shape (as many points, box or none, mask or none) share a pass: padding the shorter ones with
        points that are none would change their answers, since SAM's decoder attends to them.

        Args:
            embeddings: of the images.
            owners: for each prompt the index of its image.
            prompts: in the input frame.
            finish: makes the answers.
            is_multimask: three masks per prompt, for prompts that could mean several things; otherwise one.

        Returns:
            The answers, in the order of the prompts.
        """
        by_shape: dict[tuple[int, bool, bool], list[int]] = {}
        for position, prompt in enumerate(prompts):
            by_shape.setdefault(prompt.shape, []).append(position)
        images = Images(embeddings, self._levels)
        answers: dict[int, T] = {}
        for positions in by_shape.values():
            group = [prompts[position] for position in positions]
            decoded = self.runner.run_parts(
                len(positions),
                min(len(positions), self._prompts_at_once(images.cells)),
                _forward_of(self.runner, images, [owners[position] for position in positions], group, is_multimask),
                lambda answer, part, own=positions: finish(answer[0], answer[1], own[part]),  # type: ignore[misc]
            )
            answers.update(zip(positions, decoded, strict=True))
        return [answers[position] for position in range(len(prompts))]

    def _prompts_at_once(self, cells: int) -> int:
        memory_mb = self.runner.memory_mb
        fastest_mb = _DECODE_MB_ON_CPU if memory_mb is None else _DECODE_SHARE_OF_GPU * memory_mb
        return max(1, int((self._decode_mb or fastest_mb) * 2**20 / (cells * _BYTES_A_CELL)))


def _forward_of(
    decoder: DeviceRunner, images: Images, owners: Sequence[int], group: Sequence[SamPrompt], is_multimask: bool
) -> Callable[[nn.Module, torch.device, slice], tuple[Tensor, Tensor]]:
    """Return the decoder's pass over a part of the prompts, all of one shape, as `DeviceRunner.run_parts` calls it.

    Args:
        decoder: whose pass it is.
        images: embeddings.
        owners: for each prompt the index of its image.
        group: the prompts.
        is_multimask: three masks a prompt.
    """
    asked = [(owner, prompt.mask_logits) for owner, prompt in zip(owners, group, strict=True)]
    always_ends = bool(decoder.network.always_ends)

    def forward(network: nn.Module, device: torch.device, part: slice) -> tuple[Tensor, Tensor]:
        points = torch.from_numpy(_labelled(group[part], always_ends)).to(device)
        distinct = list({(owner, id(mask)): (owner, mask) for owner, mask in asked[part]}.values())
        place = {(owner, id(mask)): index for index, (owner, mask) in enumerate(distinct)}
        which = torch.tensor([place[owner, id(mask)] for owner, mask in asked[part]]).to(device)

        def run() -> tuple[Tensor, Tensor]:
            answer: tuple[Tensor, Tensor] = network(
                images.begun(distinct, network, device), which, points, is_multimask
            )
            return answer

        logits, predicted_iou = decoder.timed(device, run)
        return logits.float(), predicted_iou.float()

    return forward


def _labelled(group: Sequence[SamPrompt], always_ends: bool) -> NDArray[np.float32]:
    """Return (P, T, 3) of P prompts of one shape: points, then the corners of boxes, each with its label."""
    rows = []
    for prompt in group:
        own = [(x, y, label) for (x, y), label in zip(prompt.points_xy, prompt.point_labels, strict=True)]
        if prompt.box_xyxy is not None:
            left, top, right, bottom = prompt.box_xyxy
            own += [(left, top, TOP_LEFT), (right, bottom, BOTTOM_RIGHT)]
        if own and (always_ends or prompt.box_xyxy is None):
            own.append((0, 0, NO_POINT))
        rows.append(np.array(own, np.float32).reshape(-1, 3))
    return np.stack(rows)
