"""SAM's image side: from an image to its embedding, and the frames of both.

Frames, all (x, y) in px: the *input* frame is the image as the network sees it (for SAM its longer side at 1024, the
rest of the square padded), the *logits* frame a quarter of the input, the *working* frame the image with its longer
side at `working_px`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.core.types import Arrays, Image
from backend.models.cpu_engine import CpuEngine
from backend.models.device.on_device import Constants, DeviceRunner, make_cancellable
from backend.models.device.openvino_network import OpenVinoNetwork
from backend.models.images import require_rgb
from backend.models.sam.attention import fuse_attention
from backend.models.sam.options import SamOptions
from backend.models.segmenters import Embedding, SegmenterInput


class ImageEmbedder(Protocol):
    """Turns images into the embeddings of one kind of SAM, and tells the sizes of its frames."""

    levels: ClassVar[tuple[str, ...]]
    """Names of an embedding's arrays that the decoder takes, coarsest first."""
    runner: DeviceRunner
    """Runs the image encoder."""
    input_px: int
    """Side of the input frame."""
    logits_px: int
    """Side of the logits frame."""

    def prepare(self, image: Image) -> SegmenterInput:
        """Return an image as `embed_async` takes it. Needs no device."""
        ...

    def embed_async(self, prepared: Sequence[SegmenterInput]) -> Callable[[], list[Arrays]]:
        """Start to embed images; return what waits for the embeddings."""
        ...

    def embedded_hw(self, embedding: Embedding) -> tuple[int, int]:
        """Return the size of an embedding's image in the input frame."""
        ...

    def working_hw(self, embedding: Embedding) -> tuple[int, int]:
        """Return the size of an embedding's image in the working frame."""
        ...

    def logits_at(self, logits: Tensor, input_hw: tuple[int, int], size_hw: tuple[int, int]) -> Tensor:
        """Return logits at another size.

        Args:
            logits: (N, C, 256, 256) float32 in the logits frame.
            input_hw: the image in the input frame.
            size_hw: wanted size.

        Returns:
            (N, C, h, w) float32.
        """
        ...


def images_at_once(runner: DeviceRunner) -> int:
    """Return the number of images that a SAM's image encoder takes to the device at a time."""
    return max(1, runner.preferred_batch_size // 2)


class SamImageEmbedder:
    """Embeds images for SAM and MobileSAM.

    Args:
        sam: a `Sam`.
        options: sizes.
        device: where it runs.
        engine: what runs the image encoder on a processor, by the fast path; None: PyTorch.
        converted: file of the image encoder as OpenVINO has it, see `read_or_convert`; None: not kept.
    """

    levels: ClassVar[tuple[str, ...]] = ("image_embedding",)

    def __init__(
        self,
        sam: Any,
        options: SamOptions,
        device: torch.device,
        engine: CpuEngine | None = None,
        converted: Path | None = None,
    ) -> None:
        if options.is_fast:
            fuse_attention(sam.image_encoder)
        self.input_px = int(sam.image_encoder.img_size)
        self.logits_px = 4 * int(sam.prompt_encoder.image_embedding_size[0])
        self._options = options
        self._colours = Constants(sam.pixel_mean.cpu().float(), sam.pixel_std.cpu().float())
        network = sam.image_encoder
        if engine is not None and engine.is_openvino and options.is_fast and device.type == "cpu":
            example = torch.zeros(1, 3, self.input_px, self.input_px)
            network = OpenVinoNetwork(network.eval(), example, engine, converted)
        make_cancellable(network)
        self.runner = DeviceRunner(network, device)

    def prepare(self, image: Image) -> SegmenterInput:
        """Return an image in the input frame, (h, w, 3) uint8. Needs no device.

        Raises:
            BadInputError: not (H, W, 3) uint8.
        """
        require_rgb(image)
        height, width = self.input_hw(image.shape[0], image.shape[1])
        # Pillow's bilinear, which averages where it shrinks: the resizing that SAM was trained with.
        resized = PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BILINEAR)
        return SegmenterInput(torch.from_numpy(np.array(resized)), (image.shape[0], image.shape[1]))

    def embed_async(self, prepared: Sequence[SegmenterInput]) -> Callable[[], list[Arrays]]:
        """Start to embed images; return what waits for `image_embedding` (C, 64, 64) and `input_hw` (2,) of each."""
        dtype = torch.float16 if self._options.is_half else torch.float32

        def forward(network: nn.Module, batch: Tensor) -> Tensor:
            embeddings: Tensor = network(batch)
            return embeddings.to(dtype)

        wait = self.runner.run_async(
            [one.pixels for one in prepared],
            forward,
            at_once=images_at_once(self.runner),
            assemble=lambda there: torch.stack([self._normalised(pixels) for pixels in there]),
            kind=dtype if self._options.is_fast else None,
        )
        return lambda: [
            {"image_embedding": embedding.numpy(), "input_hw": np.array(one.pixels.shape[:2], np.int64)}
            for embedding, one in zip(wait(), prepared, strict=True)
        ]

    def _normalised(self, pixels: Tensor) -> Tensor:
        """Return (h, w, 3) uint8 as SAM's square input, float32."""
        height, width = pixels.shape[:2]
        mean, std = self._colours.on(pixels.device)
        inside = (pixels.permute(2, 0, 1) - mean) / std
        return F.pad(inside, (0, self.input_px - width, 0, self.input_px - height))

    def input_hw(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of an image of (height, width) px in the input frame, as `ResizeLongestSide` rounds it."""
        scale = self.input_px / max(height, width)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def embedded_hw(self, embedding: Embedding) -> tuple[int, int]:
        """Return the size of an embedding's image in the input frame."""
        height, width = embedding["input_hw"].astype(np.int64)
        return int(height), int(width)

    def working_hw(self, embedding: Embedding) -> tuple[int, int]:
        """Return the size of the image in the working frame."""
        height, width = self.embedded_hw(embedding)
        scale = self._options.working_px / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def logits_at(self, logits: Tensor, input_hw: tuple[int, int], size_hw: tuple[int, int]) -> Tensor:
        """Return logits at another size, as `Sam.postprocess_masks` brings them to the image's; the padding is cut."""
        padded = F.interpolate(logits, (self.input_px, self.input_px), mode="bilinear", align_corners=False)
        return F.interpolate(padded[..., : input_hw[0], : input_hw[1]], size_hw, mode="bilinear", align_corners=False)
