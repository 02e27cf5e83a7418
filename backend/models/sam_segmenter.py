"""SAM through its parts: image encoder, prompt encoder, mask decoder. No image is kept, so threads share it.

Frames, all (x, y) in px: the *input* frame is the image with its longer side at SAM's input size (1024), the *logits*
frame a quarter of the padded input (256 x 256), the *working* frame the image with its longer side at `working_px`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

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
from backend.models.sam_attention import fuse_attention
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

T = TypeVar("T")
Embedding = Mapping[str, NDArray[np.generic]]

_BYTES_A_CELL = 24_000
"""Memory of a decoded prompt for each cell of the image embedding: measured, with the upscaled maps in it."""
_DECODE_MB = {"cpu": 200.0, "cuda": 800.0}
"""Two prompts a pass on a CPU, whose caches hold no more; measured: a prompt of eight in 0.93 of a lone one's time."""


@dataclass(frozen=True)
class SamOptions:
    """Sizes of a SAM segmenter.

    Attributes:
        working_px: longer side of the frame of prompts and candidates.
        decode_mb: memory that one decoding pass may take, in 2**20 bytes; prompts beyond it go into the next pass.
            0: what is quickest on the device.
        most_objects: of one score map, those with the most of it; each is a prompt.
        is_half: keep image embeddings in float16 (2 MB an image); float32 is for comparisons.
        selection: which candidates of a score map are kept.
    """

    working_px: int = 512
    decode_mb: float = 0.0
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
        fuse_attention(sam.image_encoder)  # type: ignore[arg-type]
        make_interruptible(sam.image_encoder)  # type: ignore[arg-type]
        self._encoder = OnDevice(sam.image_encoder, device)  # type: ignore[arg-type]
        # Eight milliseconds of a decoder are not worth the precision of its mask borders.
        decoder = _Decoder(sam.prompt_encoder, sam.mask_decoder)  # type: ignore[arg-type]
        self._decoder = OnDevice(decoder, device, uses_half=False, is_urgent=True)
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
        return self.embed_prepared([self.prepare(image) for image in images])

    def prepare(self, image: Image) -> Tensor:
        """What `embed_prepared` takes in place of an image: (h, w, 3) uint8 in the input frame. Needs no device.

        Raises:
            BadInputError: not (H, W, 3) uint8.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise BadInputError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}; decode it as RGB")
        height, width = self.input_hw(image.shape[0], image.shape[1])
        # Pillow's bilinear, which averages where it shrinks: the resizing that SAM was trained with.
        resized = PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized))

    def embed_prepared(self, prepared: Sequence[Tensor]) -> list[Arrays]:
        """`embed_batch` of what `prepare` made."""
        dtype = torch.float16 if self._options.is_half else torch.float32

        def forward(network: nn.Module, there: list[Tensor]) -> Tensor:
            embeddings: Tensor = network(torch.stack([self._normalised(pixels) for pixels in there]))
            return embeddings.to(dtype)

        embeddings = self._encoder.run(prepared, forward, at_once=self.batch_size)
        return [
            {"image_embedding": embedding.numpy(), "input_hw": np.array(pixels.shape[:2], np.int64)}
            for embedding, pixels in zip(embeddings, prepared, strict=True)
        ]

    def _normalised(self, pixels: Tensor) -> Tensor:
        """(h, w, 3) uint8 to SAM's square input, float32."""
        height, width = pixels.shape[:2]
        mean, std = (one.to(pixels.device) for one in (self._mean, self._std))
        inside = (pixels.permute(2, 0, 1) - mean) / std
        return F.pad(inside, (0, self._input_px - width, 0, self._input_px - height))

    def input_hw(self, height: int, width: int) -> tuple[int, int]:
        """Size of an image of (height, width) px in the input frame, as `ResizeLongestSide` rounds it."""
        scale = self._input_px / max(height, width)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def working_hw(self, embedding: Mapping[str, NDArray[np.generic]]) -> tuple[int, int]:
        """Size of the image in the working frame."""
        height, width = _input_hw_of(embedding)
        scale = self._options.working_px / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

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

        def finish(logits: Tensor, predicted_iou: Tensor, positions: Sequence[int]) -> list[Decoded]:
            both = zip(logits.cpu(), predicted_iou.cpu(), strict=True)
            return [Decoded(one, opinion) for one, opinion in both]

        return self._decode([embedding], [0] * len(prompts), prompts, finish, is_multimask=is_multimask)

    def _decode(
        self,
        embeddings: Sequence[Embedding],
        owners: Sequence[int],
        prompts: Sequence[SamPrompt],
        finish: Callable[[Tensor, Tensor, Sequence[int]], list[T]],
        *,
        is_multimask: bool,
    ) -> list[T]:
        """`decode_prompts` for several images, but what becomes of the logits is up to `finish`, on the device.

        Args:
            embeddings: of the images.
            owners: for each prompt the index of its image.
            prompts, is_multimask: as there.
            finish: gets (N, C, 256, 256) logits, (N, C) predicted IoU, and the positions of these N prompts; gives
                one answer for each.
        """
        by_shape: dict[tuple[int, bool, bool], list[int]] = {}
        for position, prompt in enumerate(prompts):
            by_shape.setdefault(prompt.shape, []).append(position)
        images = _Images(embeddings)
        answers: dict[int, T] = {}
        for positions in by_shape.values():
            group = [prompts[position] for position in positions]
            decoded = self._decoder.run_parts(
                len(positions),
                min(len(positions), self._prompts_at_once(images.here[0])),
                self._forward_of(images, [owners[position] for position in positions], group, is_multimask),
                lambda answer, part, own=positions: finish(answer[0], answer[1], own[part]),  # type: ignore[misc]
            )
            answers.update(zip(positions, decoded, strict=True))
        return [answers[position] for position in range(len(prompts))]

    def _forward_of(
        self, images: "_Images", owners: Sequence[int], group: Sequence[SamPrompt], is_multimask: bool
    ) -> Callable[[nn.Module, torch.device, slice], tuple[Tensor, Tensor]]:
        def forward(network: nn.Module, device: torch.device, part: slice) -> tuple[Tensor, Tensor]:
            points, labels, boxes, masks = (None if one is None else one.to(device) for one in _stack(group[part]))
            seen = images.of(owners[part], device)
            logits, predicted_iou = self._decoder.timed(
                device, lambda: network(seen, points, labels, boxes, masks, is_multimask)
            )
            return logits.float(), predicted_iou.float()

        return forward

    def _prompts_at_once(self, images: Tensor) -> int:
        cells = images.shape[-1] * images.shape[-2]
        decode_mb = self._options.decode_mb or _DECODE_MB[self._decoder.device.type]
        return max(1, int(decode_mb * 2**20 / (cells * _BYTES_A_CELL)))

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
        return self.decode_many([(embedding, prompts)])[0]

    def decode_many(self, asked: Sequence[tuple[Embedding, Sequence[Prompt]]]) -> list[list[MaskCandidate]]:
        """`decode` of several (embedding, prompts): what all of them propose shares passes, whosever image it is of."""
        with torch.inference_mode():
            found = self._propose(asked)
            for (embedding, prompts), candidates in zip(asked, found, strict=True):
                for position, prompt in enumerate(prompts):
                    if prompt.prior is None and (marked := self._decode_scribble(embedding, prompt)) is not None:
                        candidates.append(MaskCandidate(*marked, position))
        return [sorted(candidates, key=lambda candidate: candidate.prompt_index) for candidates in found]

    def _propose(self, asked: Sequence[tuple[Embedding, Sequence[Prompt]]]) -> list[list[MaskCandidate]]:
        found: list[list[MaskCandidate]] = [[] for _ in asked]
        # Embeddings that are asked twice, for two labels, are one image.
        embeddings = list({id(embedding): embedding for embedding, _ in asked}.values())
        index_of = {id(embedding): index for index, embedding in enumerate(embeddings)}
        frames = [_Frame.of(self, embedding) for embedding, _ in asked]
        sam_prompts, planned, maps = [], [], []
        for number, (_, prompts) in enumerate(asked):
            for position, prompt, score_map in self._objects(frames[number], prompts):
                sam_prompts.append(prompt)
                planned.append((number, position))
                maps.append(score_map)

        def finish(logits: Tensor, predicted_iou: Tensor, group: Sequence[int]) -> list[tuple[Mask, float] | None]:
            answers: list[tuple[Mask, float] | None] = [None] * len(group)
            by_frame: dict[_Frame, list[int]] = {}
            for row, one in enumerate(group):
                by_frame.setdefault(frames[planned[one][0]], []).append(row)
            # Chosen in the logits frame, where a mask costs little; only the best one is brought to the working size.
            for frame, rows in by_frame.items():
                prior = torch.stack([maps[group[row]] for row in rows]).to(logits.device)
                own = logits[rows]
                masks = own[:, :, : frame.small_hw[0], : frame.small_hw[1]] > 0
                chosen = select_by_prior(masks, predicted_iou[rows], prior, self._options.selection)
                kept = torch.nonzero(chosen.index >= 0)[:, 0]
                full = self.logits_at(own[kept, chosen.index[kept]][:, None], frame.input_hw, frame.working_hw)[:, 0]
                scores = chosen.score[kept].tolist()
                for place, mask, score in zip(kept.tolist(), (full > 0).cpu().numpy(), scores, strict=True):
                    answers[rows[place]] = mask.copy(), score
            return answers

        owners = [index_of[id(asked[number][0])] for number, _ in planned]
        decoded = self._decode(embeddings, owners, sam_prompts, finish, is_multimask=True) if planned else []
        for (number, position), answer in zip(planned, decoded, strict=True):
            if answer is not None:
                found[number].append(MaskCandidate(*answer, position))
        return found

    def _objects(self, frame: "_Frame", prompts: Sequence[Prompt]) -> Iterator[tuple[int, SamPrompt, Tensor]]:
        """The pieces of the prompts' score maps: first prompt with a point on it, what to ask, the small map."""
        by_prior: dict[int, list[int]] = {}
        for position, prompt in enumerate(prompts):
            if prompt.prior is not None:
                by_prior.setdefault(id(prompt.prior), []).append(position)
        for own in by_prior.values():
            prior = prompts[own[0]].prior
            assert prior is not None
            score_map = frame.shrink(prior)
            logits = prior_to_logits(score_map, frame.input_hw, input_px=self._input_px, logits_px=self._logits_px)
            objects = points_by_object([prompts[position].scribble for position in own], prior)
            for first, scribble in objects[: self._options.most_objects]:
                for asked in scribble_to_prompts(scribble, frame.input_hw, mask_logits=logits, most_points=3):
                    yield own[first], asked, torch.from_numpy(score_map)

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

        def finish(logits: Tensor, predicted_iou: Tensor, group: Sequence[int]) -> list[tuple[Mask, float]]:
            opinion, index = predicted_iou.max(dim=1)
            best = logits[torch.arange(len(group), device=logits.device), index]
            full = (self.logits_at(best[:, None], input_hw, working_hw)[:, 0] > 0).cpu().numpy()
            return [(mask.copy(), score) for mask, score in zip(full, opinion.clamp(0.0, 1.0).tolist(), strict=True)]

        found: list[tuple[Mask, float]] = []
        for is_ambiguous in (True, False):
            group = [prompt for prompt in prompts if prompt.is_ambiguous == is_ambiguous]
            found += self._decode([embedding], [0] * len(group), group, finish, is_multimask=is_ambiguous)
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
        """N prompts, each with its image's (C, h, w) embedding, to (N, 3 or 1, 4h, 4w) logits, (N, 3 or 1) predicted
        IoU.

        The decoder's own `forward` takes one image for all prompts; this is what it does with each of them.
        Source: segment_anything.modeling.mask_decoder (Apache 2.0), `predict_masks`.
        """
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


@dataclass(frozen=True)
class _Frame:
    """Sizes of an image: in the input, the logits and the working frame."""

    input_hw: tuple[int, int]
    small_hw: tuple[int, int]
    working_hw: tuple[int, int]

    @classmethod
    def of(cls, segmenter: SamSegmenter, embedding: Embedding) -> "_Frame":
        input_hw = _input_hw_of(embedding)
        small_hw = logits_hw(input_hw, input_px=segmenter._input_px, logits_px=segmenter._logits_px)
        return cls(input_hw, small_hw, segmenter.working_hw(embedding))

    def shrink(self, prior: NDArray[np.float32]) -> NDArray[np.float32]:
        """A score map in the logits frame."""
        size = self.small_hw[1], self.small_hw[0]
        return np.asarray(cv2.resize(prior, size, interpolation=cv2.INTER_AREA), np.float32)


class _Images:
    """Image embeddings, brought to a device once for all the passes of a call."""

    def __init__(self, embeddings: Sequence[Embedding]) -> None:
        self.here = [torch.from_numpy(one["image_embedding"]) for one in embeddings]
        self._there: dict[torch.device, Tensor] = {}

    def of(self, owners: Sequence[int], device: torch.device) -> Tensor:
        """(N, C, h, w) float32: for each of N prompts its image's."""
        if device not in self._there:
            self._there[device] = torch.stack([one.to(device).float() for one in self.here])
        there = self._there[device]
        return there.expand(len(owners), -1, -1, -1) if len(there) == 1 else there[list(owners)]


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
