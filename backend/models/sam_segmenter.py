"""SAM through its parts: image encoder, prompt encoder, mask decoder. No image is kept, so threads share it.

Frames, all (x, y) in px: the *input* frame is the image with its longer side at SAM's input size (1024), the *logits*
frame a quarter of the padded input (256 x 256), the *working* frame the image with its longer side at `working_px`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from backend.core.types import Arrays, Image, Mask
from backend.errors import BadInputError
from backend.models.accelerator import OnDevice, make_interruptible
from backend.models.sam_prompts import (
    SamPrompt,
    logits_hw,
    points_by_object,
    prior_to_logits,
    scribble_to_prompts,
    uncovered_points,
)
from backend.models.sam_selection import SelectionOptions, select_by_prior
from backend.models.segmenter import MaskCandidate, Prompt

_BYTES_A_CELL = 24_000
"""Memory of a decoded prompt for each cell of the image embedding: measured, with the upscaled maps in it."""


@dataclass(frozen=True)
class SamOptions:
    """Sizes of a SAM segmenter.

    Attributes:
        working_px: longer side of the frame of prompts and candidates.
        decode_mb: memory that one decoding pass may take, in 2**20 bytes; prompts beyond it go into the next pass.
        most_objects: of one score map, those with the most of it; each is a prompt.
        is_half: keep image embeddings in float16 (2 MB an image); float32 is for comparisons.
        selection: which candidates of a score map are kept.
    """

    working_px: int = 512
    decode_mb: float = 800.0
    most_objects: int = 8
    is_half: bool = True
    selection: SelectionOptions = field(default_factory=SelectionOptions)


@dataclass(frozen=True, eq=False)
class Decoded:
    """What the mask decoder says to one prompt.

    Attributes:
        logits: (C, 256, 256) float32 in the logits frame, above 0 inside; C is 3 or 1.
        predicted_iou: (C,) float32, SAM's own opinion, roughly in [0, 1].
    """

    logits: Tensor
    predicted_iou: Tensor


class SamSegmenter:
    """Masks by SAM or MobileSAM.

    Args:
        sam: a `Sam` with its parts (`models.sam_networks.build_sam`, or a small one of its layout).
        signature: name and weights of it.
        options: sizes and thresholds.
        device: where it runs.
    """

    def __init__(
        self,
        sam: nn.Module,
        signature: str,
        options: SamOptions = SamOptions(),
        *,
        device: torch.device = torch.device("cpu"),  # noqa: B008 (a value)
    ) -> None:
        self._options = options
        sam = sam.eval()
        self._input_px = int(sam.image_encoder.img_size)  # type: ignore[union-attr, arg-type]
        self._mean, self._std = (getattr(sam, name).cpu().float() for name in ("pixel_mean", "pixel_std"))
        make_interruptible(sam.image_encoder)  # type: ignore[arg-type]
        self._encoder = OnDevice(sam.image_encoder, device)  # type: ignore[arg-type]
        # Eight milliseconds of a decoder are not worth the precision of its mask borders.
        decoder = _Decoder(sam.prompt_encoder, sam.mask_decoder)  # type: ignore[arg-type]
        self._decoder = OnDevice(decoder, device, uses_half=False)
        self.on_devices = (self._encoder, self._decoder)
        self._logits_px = 4 * int(sam.prompt_encoder.image_embedding_size[0])  # type: ignore[union-attr, index]
        self.signature = f"{signature}:{options.working_px}px:{options.selection.digest()}"

    @property
    def batch_size(self) -> int:
        """Images that `embed_batch` takes to the device at a time."""
        return max(1, self._encoder.good_batch // 2)

    # -- images

    def embed(self, image: Image) -> Arrays:
        """The image embedding of (H, W, 3) uint8 RGB: `image_embedding` (C, 64, 64) and `input_hw` (2,).

        Raises:
            BadInputError: not such an image.
        """
        return self.embed_batch([image])[0]

    def embed_batch(self, images: Sequence[Image]) -> list[Arrays]:
        """The same for several images; all share SAM's square input, whatever their sizes."""
        sizes_hw = []
        for image in images:
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
                raise BadInputError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}; decode it as RGB")
            sizes_hw.append(self.input_hw(image.shape[0], image.shape[1]))
        embeddings: list[Tensor] = []
        for start in range(0, len(images), self.batch_size):
            part = slice(start, start + self.batch_size)
            inputs = [self._input(image, hw) for image, hw in zip(images[part], sizes_hw[part], strict=True)]
            embeddings += self._encoder.run(inputs, lambda network, batch: network(batch))
        dtype = np.float16 if self._options.is_half else np.float32
        return [
            {"image_embedding": embedding.numpy().astype(dtype), "input_hw": np.array(hw, np.int64)}
            for embedding, hw in zip(embeddings, sizes_hw, strict=True)
        ]

    def input_hw(self, height: int, width: int) -> tuple[int, int]:
        """Size of an image of (height, width) px in the input frame, as `ResizeLongestSide` rounds it."""
        scale = self._input_px / max(height, width)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def working_hw(self, embedding: Mapping[str, NDArray[np.generic]]) -> tuple[int, int]:
        """Size of the image in the working frame."""
        height, width = _input_hw_of(embedding)
        scale = self._options.working_px / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def _input(self, image: Image, hw: tuple[int, int]) -> Tensor:
        # Pillow's bilinear, which averages where it shrinks: the resizing that SAM was trained with.
        resized = PIL.Image.fromarray(image).resize((hw[1], hw[0]), PIL.Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
        return F.pad((pixels - self._mean) / self._std, (0, self._input_px - hw[1], 0, self._input_px - hw[0]))

    # -- prompts

    def decode_prompts(
        self, embedding: Mapping[str, NDArray[np.generic]], prompts: Sequence[SamPrompt], *, is_multimask: bool
    ) -> list[Decoded]:
        """The mask decoder's answers, in the order of the prompts, each as if it had been asked alone.

        Prompts of one shape (as many points, box or none, mask or none) share a pass: padding the shorter ones with
        points that are none would change their answers, since SAM's decoder attends to them.

        Args:
            embedding: of the image, as `embed` gives it.
            prompts: in the input frame.
            is_multimask: three masks a prompt, for prompts that could mean several things; otherwise one.
        """
        by_shape: dict[tuple[int, bool, bool], list[int]] = {}
        for position, prompt in enumerate(prompts):
            by_shape.setdefault(prompt.shape, []).append(position)
        image_embedding = torch.from_numpy(embedding["image_embedding"].astype(np.float32))[None]
        answers: dict[int, Decoded] = {}
        for positions in by_shape.values():
            group = [prompts[position] for position in positions]
            decoded = self._decode_group(image_embedding, group, is_multimask=is_multimask)
            answers.update(zip(positions, decoded, strict=True))
        return [answers[position] for position in range(len(prompts))]

    def _decode_group(
        self, image_embedding: Tensor, group: Sequence[SamPrompt], *, is_multimask: bool
    ) -> list[Decoded]:
        def forward(network: nn.Module, device: torch.device, part: slice) -> list[Decoded]:
            points, labels, boxes, masks = _stack(group[part])
            logits, predicted_iou = network(
                image_embedding.to(device),
                None if points is None else points.to(device),
                None if labels is None else labels.to(device),
                None if boxes is None else boxes.to(device),
                None if masks is None else masks.to(device),
                is_multimask,
            )
            both = zip(logits.float().cpu(), predicted_iou.float().cpu(), strict=True)
            return [Decoded(one, opinion) for one, opinion in both]

        return self._decoder.run_parts(len(group), min(len(group), self._prompts_at_once(image_embedding)), forward)

    def _prompts_at_once(self, image_embedding: Tensor) -> int:
        cells = image_embedding.shape[-1] * image_embedding.shape[-2]
        return max(1, int(self._options.decode_mb * 2**20 / (cells * _BYTES_A_CELL)))

    def logits_at(self, logits: Tensor, input_hw: tuple[int, int], size_hw: tuple[int, int]) -> Tensor:
        """Logits at another size, as `Sam.postprocess_masks` brings them to the image's.

        Args:
            logits: (N, C, 256, 256) float32 in the logits frame.
            input_hw: the image in the input frame: the rest of it is padding.
            size_hw: wanted size.

        Returns:
            (N, C, h, w) float32.
        """
        padded = F.interpolate(logits, (self._input_px, self._input_px), mode="bilinear", align_corners=False)
        return F.interpolate(padded[..., : input_hw[0], : input_hw[1]], size_hw, mode="bilinear", align_corners=False)

    # -- the segmenter protocol

    def decode(self, embedding: Mapping[str, NDArray[np.generic]], prompts: Sequence[Prompt]) -> list[MaskCandidate]:
        """Candidates in the working frame.

        Prompts with a prior propose what the score map supports. Those of one score map are joined object by object
        first (a piece of the map above 0.5 is one): a decoder pass a cluster of points would say the same thing several
        times, and decoding is what costs. The score map goes into SAM's mask input; of SAM's three masks the one that
        fits the score map best is kept, if it fits at all. A candidate answers the first prompt with a point in it.
        A prompt without a prior is a user's scribble: what it marks is the answer, one candidate at most.
        """
        with torch.inference_mode():
            proposals = [position for position, prompt in enumerate(prompts) if prompt.prior is not None]
            candidates = self._propose(embedding, prompts, proposals)
            for position, prompt in enumerate(prompts):
                if prompt.prior is None and (found := self._decode_scribble(embedding, prompt)) is not None:
                    mask, score = found
                    candidates.append(MaskCandidate(mask, score, position))
        return sorted(candidates, key=lambda candidate: candidate.prompt_index)

    def _propose(
        self, embedding: Mapping[str, NDArray[np.generic]], prompts: Sequence[Prompt], positions: Sequence[int]
    ) -> list[MaskCandidate]:
        input_hw, working_hw = _input_hw_of(embedding), self.working_hw(embedding)
        by_prior: dict[int, list[int]] = {}
        for position in positions:
            by_prior.setdefault(id(prompts[position].prior), []).append(position)
        sam_prompts, owners = [], []
        for own in by_prior.values():
            prior = prompts[own[0]].prior
            assert prior is not None
            logits = prior_to_logits(prior, input_hw, input_px=self._input_px, logits_px=self._logits_px)
            objects = points_by_object([prompts[position].scribble for position in own], prior)
            for first, scribble in objects[: self._options.most_objects]:
                sam_prompts += scribble_to_prompts(scribble, input_hw, mask_logits=logits, most_points=3)
                owners.append(own[first])
        decoded = self.decode_prompts(embedding, sam_prompts, is_multimask=True)
        candidates = []
        for owner, answer in zip(owners, decoded, strict=True):
            prior = prompts[owner].prior
            assert prior is not None
            # Chosen in the logits frame, where a mask costs little; only the best one is brought to the working size.
            small_hw = logits_hw(input_hw, input_px=self._input_px, logits_px=self._logits_px)
            masks = (answer.logits[:, : small_hw[0], : small_hw[1]] > 0).numpy()
            small = cv2.resize(prior, (small_hw[1], small_hw[0]), interpolation=cv2.INTER_AREA)
            chosen = select_by_prior(masks, answer.predicted_iou.numpy(), small, self._options.selection)
            if chosen is not None:
                full = self.logits_at(answer.logits[None, chosen.index, None], input_hw, working_hw)[0, 0]
                candidates.append(MaskCandidate((full > 0).numpy(), chosen.score, owner))
        return candidates

    def _decode_scribble(
        self, embedding: Mapping[str, NDArray[np.generic]], prompt: Prompt
    ) -> tuple[Mask, float] | None:
        """The union of what its boxes and points mean; points that it leaves out are asked for by themselves."""
        scribble, input_hw = prompt.scribble, _input_hw_of(embedding)
        found = self._best_masks(embedding, scribble_to_prompts(scribble, input_hw))
        missed = uncovered_points(scribble, [mask for mask, _ in found])
        if found and missed is not None:
            found += self._best_masks(embedding, scribble_to_prompts(missed, input_hw))
        masks = [mask for mask, _ in found if mask.any()]
        if not masks:
            return None
        joined: Mask = np.logical_or.reduce(masks)
        return joined, float(np.mean([score for mask, score in found if mask.any()]))

    def _best_masks(
        self, embedding: Mapping[str, NDArray[np.generic]], prompts: Sequence[SamPrompt]
    ) -> list[tuple[Mask, float]]:
        """For each prompt the mask that SAM itself believes in most. A lone click is ambiguous: it gets three."""
        input_hw, working_hw = _input_hw_of(embedding), self.working_hw(embedding)
        found: list[tuple[Mask, float]] = []
        for is_ambiguous in (True, False):
            group = [prompt for prompt in prompts if prompt.is_ambiguous == is_ambiguous]
            for answer in self.decode_prompts(embedding, group, is_multimask=is_ambiguous):
                best = int(answer.predicted_iou.argmax())
                logits = self.logits_at(answer.logits[None, best : best + 1], input_hw, working_hw)[0, 0]
                score = float(answer.predicted_iou[best].clamp(0.0, 1.0))
                found.append(((logits > 0).numpy(), score))
        return found


class _Decoder(nn.Module):
    """Prompt encoder and mask decoder as one network, so that they lie on one device and fall back together."""

    def __init__(self, prompt_encoder: nn.Module, mask_decoder: nn.Module) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder

    def forward(
        self,
        image_embedding: Tensor,
        points: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        masks: Tensor | None,
        is_multimask: bool,
    ) -> tuple[Tensor, Tensor]:
        """(1, C, h, w) embedding and N prompts to (N, 3 or 1, 4h, 4w) logits and (N, 3 or 1) predicted IoU."""
        given = None if points is None else (points, labels)
        sparse, dense = self.prompt_encoder(points=given, boxes=boxes, masks=masks)
        logits, predicted_iou = self.mask_decoder(
            image_embeddings=image_embedding,
            image_pe=self.prompt_encoder.get_dense_pe(),  # type: ignore[operator]
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=is_multimask,
        )
        return logits, predicted_iou


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


def _input_hw_of(embedding: Mapping[str, NDArray[np.generic]]) -> tuple[int, int]:
    height, width = embedding["input_hw"].astype(np.int64)
    return int(height), int(width)
