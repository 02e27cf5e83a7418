"""SAM 2's image side, and its decoder.

Unlike SAM's, the input frame is a square that the image is squeezed into, and the decoder looks at two finer levels of
the image beside the embedding.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.core.types import Arrays, Image
from backend.models.device.on_device import Constants, DeviceRunner, make_cancellable
from backend.models.images import require_rgb
from backend.models.sam.image_embedder import images_at_once
from backend.models.sam.options import SamOptions
from backend.models.sam.package_decoder import package_prompt
from backend.models.sam.prompt_decoding import PointTokens, mask_input
from backend.models.segmenters import Embedding, SegmenterInput

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Colours of SAM 2's input, for pixels in [0, 1]."""


class Sam2ImageEmbedder:
    """Embeds images for SAM 2. An image embedding has three levels: 8 MB in float16.

    Args:
        sam: a `SAM2Base`.
        options: sizes.
        device: where it runs.
    """

    levels: ClassVar[tuple[str, ...]] = ("image_embedding", "level_1", "level_0")

    def __init__(self, sam: Any, options: SamOptions, device: torch.device) -> None:
        cells, channels = int(sam.sam_image_embedding_size), int(sam.hidden_dim)
        self.input_px, self.logits_px = int(sam.image_size), 4 * cells
        self._level_shapes = ((channels, cells), (channels // 4, 2 * cells), (channels // 8, 4 * cells))
        self._options = options
        self._colours = Constants(torch.tensor(_MEAN)[:, None, None], torch.tensor(_STD)[:, None, None])
        encoder = _Encoder(sam)
        make_cancellable(encoder)
        self.runner = DeviceRunner(encoder, device)

    def prepare(self, image: Image) -> SegmenterInput:
        """Return an image as the input frame's square, (3, 1024, 1024) float32 in [0, 1]. Needs no device.

        Raises:
            BadInputError: not (H, W, 3) uint8.
        """
        require_rgb(image)
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float().div(255)
        size = (self.input_px, self.input_px)
        # Not rounded to bytes again, as the resizing that SAM 2 was trained with.
        square = F.interpolate(pixels[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
        return SegmenterInput(square.contiguous(), (image.shape[0], image.shape[1]))

    def embed_async(self, prepared: Sequence[SegmenterInput]) -> Callable[[], list[Arrays]]:
        """Start to embed images; return what waits for the levels of each, and `image_hw` (2,), its natural size."""
        dtype = torch.float16 if self._options.is_half else torch.float32

        def forward(network: nn.Module, batch: Tensor) -> Tensor:
            levels: Tensor = network(self._normalised(batch))
            return levels.to(dtype)

        wait = self.runner.run_async(
            [one.pixels for one in prepared],
            forward,
            at_once=images_at_once(self.runner),
            kind=dtype if self._options.is_fast else None,
        )
        return lambda: [
            {**self._split(answer), "image_hw": np.array(one.image_hw, np.int64)}
            for answer, one in zip(wait(), prepared, strict=True)
        ]

    def _normalised(self, pixels: Tensor) -> Tensor:
        mean, std = self._colours.on(pixels.device)
        return (pixels - mean) / std

    def _split(self, flat: Tensor) -> Arrays:
        sizes = [channels * side * side for channels, side in self._level_shapes]
        parts = zip(self.levels, torch.split(flat, sizes), self._level_shapes, strict=True)
        return {name: np.array(part.reshape(channels, side, side).numpy()) for name, part, (channels, side) in parts}

    def embedded_hw(self, embedding: Embedding) -> tuple[int, int]:
        """Return the whole input frame, which every image fills."""
        return self.input_px, self.input_px

    def working_hw(self, embedding: Embedding) -> tuple[int, int]:
        """Return the size of the image in the working frame, which has its aspect ratio."""
        height, width = (int(side) for side in embedding["image_hw"].astype(np.int64))
        scale = self._options.working_px / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def logits_at(self, logits: Tensor, input_hw: tuple[int, int], size_hw: tuple[int, int]) -> Tensor:
        """Return logits at another size, as `SAM2Transforms.postprocess_masks` brings them to the image's."""
        return F.interpolate(logits, size_hw, mode="bilinear", align_corners=False)


class _Encoder(nn.Module):
    """Computes an image's three levels as the decoder takes them, one after the other in one row."""

    def __init__(self, sam: Any) -> None:
        super().__init__()
        self.image_encoder = sam.image_encoder
        self.conv_s0, self.conv_s1 = sam.sam_mask_decoder.conv_s0, sam.sam_mask_decoder.conv_s1
        self.no_mem_embed = sam.no_mem_embed

    def forward(self, pixels: Tensor) -> Tensor:
        """Turn (B, 3, S, S) float32, normalised, into (B, numbers of all levels)."""
        fine, middle, coarse = self.image_encoder(pixels)["backbone_fpn"]
        # An image by itself is a video whose memory is empty.
        levels = (coarse + self.no_mem_embed.reshape(1, -1, 1, 1), self.conv_s1(middle), self.conv_s0(fine))
        return torch.cat([level.float().flatten(1) for level in levels], dim=1)


class Sam2Decoder(nn.Module):
    """Joins SAM 2's prompt encoder and its own mask decoder into one network, as `SamDecoder`.

    Args:
        prompt_encoder, mask_decoder: of a `SAM2Base`.
        is_fast: prompts are embedded by `PointTokens`, not by the prompt encoder itself.
    """

    always_ends = True

    def __init__(self, prompt_encoder: nn.Module, mask_decoder: nn.Module, *, is_fast: bool) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self._tokens = PointTokens(prompt_encoder) if is_fast else None

    def begin(self, images: tuple[Tensor, ...], masks: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Return the images' levels, and what their mask inputs add to the coarsest; or the mask inputs themselves."""
        return images, masks if self._tokens is None else mask_input(self.prompt_encoder, masks)

    def forward(
        self, begun: tuple[tuple[Tensor, ...], Tensor | None], which: Tensor, points: Tensor, is_multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """Decode as `SamDecoder.forward`, each prompt with the levels of its own image."""
        image_embedding, level_1, level_0 = (_own(level, which) for level in begun[0])
        masks = None if begun[1] is None else _own(begun[1], which)
        if self._tokens is None:
            # SAM 2's predictor gives a box as two points.
            sparse, dense = package_prompt(self.prompt_encoder, points, masks, takes_boxes=False)
        else:
            assert masks is not None
            sparse, dense = self._tokens(points), masks
        logits, predicted_iou, _, _ = self.mask_decoder(
            image_embeddings=image_embedding,
            image_pe=self.prompt_encoder.get_dense_pe(),  # type: ignore[operator]
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=is_multimask,
            repeat_image=False,
            high_res_features=[level_0, level_1],
        )
        return logits, predicted_iou


def _own(shared: Tensor, which: Tensor) -> Tensor:
    """Return each prompt's, (P, ...), of what is given for M images, (M, ...)."""
    return shared.expand(len(which), *shared.shape[1:]) if len(shared) == 1 else shared[which]
