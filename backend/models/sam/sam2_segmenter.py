"""SAM 2 through its parts, asked as SAM is. What differs: its input frame is a square that the image is squeezed into,
and its decoder looks at two finer levels of the image beside the embedding."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.core.types import Arrays, Image
from backend.models.sam.prompt_decoding import Embedding, PointTokens, mask_input
from backend.models.sam.segmenter import SamNetworks, SamSegmenter
from backend.models.segmenters import SegmenterInput, require_rgb

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of SAM 2's input, for pixels in [0, 1]."""


class Sam2Segmenter(SamSegmenter):
    """Masks by SAM 2. An image embedding has three levels: 8 MB in float16.

    Args: as `SamSegmenter`; `sam` is a `SAM2Base` (`models.sam2_networks.build_sam2`, or a small one of its layout).
    """

    levels: ClassVar[tuple[str, ...]] = ("image_embedding", "level_1", "level_0")

    def _networks(self, sam: Any) -> SamNetworks:
        cells = int(sam.sam_image_embedding_size)
        channels = int(sam.hidden_dim)
        self._level_shapes = ((channels, cells), (channels // 4, 2 * cells), (channels // 8, 4 * cells))
        return SamNetworks(
            _Encoder(sam),
            _Decoder(sam.sam_prompt_encoder, sam.sam_mask_decoder),
            input_px=int(sam.image_size),
            logits_px=4 * cells,
            mean=torch.tensor(_MEAN)[:, None, None],
            std=torch.tensor(_STD)[:, None, None],
        )

    def prepare(self, image: Image) -> SegmenterInput:
        """What `embed_async` takes in place of an image: (3, 1024, 1024) float32 in [0, 1]. Needs no device.

        Raises:
            BadInputError: not (H, W, 3) uint8.
        """
        require_rgb(image)
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float().div(255)
        size = (self._input_px, self._input_px)
        # Not rounded to bytes again, as the resizing that SAM 2 was trained with.
        square = F.interpolate(pixels[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
        return SegmenterInput(square.contiguous(), (image.shape[0], image.shape[1]))

    def embed_async(self, prepared: Sequence[SegmenterInput]) -> Callable[[], list[Arrays]]:
        """The levels of the images, and `image_hw` (2,): their natural size; gives what waits for them."""
        dtype = torch.float16 if self._options.is_half else torch.float32

        def forward(network: nn.Module, batch: Tensor) -> Tensor:
            levels: Tensor = network(self._normalised(batch))
            return levels.to(dtype)

        wait = self._encoder.run_async([one.pixels for one in prepared], forward, at_once=self.batch_size, kind=dtype)
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
        """Every image fills the whole input frame."""
        return self._input_px, self._input_px

    def working_hw(self, embedding: Embedding) -> tuple[int, int]:
        """Size of the image in the working frame, which has its aspect ratio."""
        height, width = (int(side) for side in embedding["image_hw"].astype(np.int64))
        scale = self._options.working_px / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def logits_at(self, logits: Tensor, input_hw: tuple[int, int], size_hw: tuple[int, int]) -> Tensor:
        """Logits at another size, as `SAM2Transforms.postprocess_masks` brings them to the image's."""
        return F.interpolate(logits, size_hw, mode="bilinear", align_corners=False)


class _Encoder(nn.Module):
    """An image's three levels as the decoder takes them, one after the other in one row."""

    def __init__(self, sam: Any) -> None:
        super().__init__()
        self.image_encoder = sam.image_encoder
        self.conv_s0, self.conv_s1 = sam.sam_mask_decoder.conv_s0, sam.sam_mask_decoder.conv_s1
        self.no_mem_embed = sam.no_mem_embed

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) float32, normalised, to (B, numbers of all levels)."""
        fine, middle, coarse = self.image_encoder(pixels)["backbone_fpn"]
        # An image by itself is a video whose memory is empty.
        levels = (coarse + self.no_mem_embed.reshape(1, -1, 1, 1), self.conv_s1(middle), self.conv_s0(fine))
        return torch.cat([level.float().flatten(1) for level in levels], dim=1)


class _Decoder(nn.Module):
    """SAM 2's prompt encoder and mask decoder as one network."""

    always_ends = True

    def __init__(self, prompt_encoder: nn.Module, mask_decoder: nn.Module) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self._tokens = PointTokens(prompt_encoder)

    def begin(self, images: tuple[Tensor, ...], masks: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor]:
        """The images' levels, and what their mask inputs add to the coarsest."""
        return images, mask_input(self.prompt_encoder, masks)

    def forward(
        self, begun: tuple[tuple[Tensor, ...], Tensor], which: Tensor, points: Tensor, is_multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """As `SamDecoder.forward`, each prompt with the levels of its own image."""
        image_embedding, level_1, level_0 = (_own(level, which) for level in begun[0])
        logits, predicted_iou, _, _ = self.mask_decoder(
            image_embeddings=image_embedding,
            image_pe=self.prompt_encoder.get_dense_pe(),  # type: ignore[operator]
            sparse_prompt_embeddings=self._tokens(points),
            dense_prompt_embeddings=_own(begun[1], which),
            multimask_output=is_multimask,
            repeat_image=False,
            high_res_features=[level_0, level_1],
        )
        return logits, predicted_iou


def _own(shared: Tensor, which: Tensor) -> Tensor:
    """(M, ...) to (P, ...): each prompt's."""
    return shared.expand(len(which), *shared.shape[1:]) if len(shared) == 1 else shared[which]
