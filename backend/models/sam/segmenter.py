"""SAM through its parts: image encoder, prompt encoder, mask decoder. No image is kept, so threads share it.

Frames, all (x, y) in px: the *input* frame is the image with its longer side at SAM's input size (1024), the *logits*
frame a quarter of the padded input (256 x 256), the *working* frame the image with its longer side at `working_px`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import cv2
import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from backend.core.types import Arrays, Image, Mask
from backend.models.device.on_device import Constants, DeviceRunner, make_cancellable
from backend.models.sam.attention import fuse_attention
from backend.models.sam.prompt_decoding import Embedding, Images, SamDecoder, forward_of
from backend.models.sam.prompts import (
    SamPrompt,
    logits_hw,
    points_by_object,
    prior_to_logits,
    scribble_to_prompts,
    uncovered_points,
)
from backend.models.sam.selection import SelectionOptions, rejection_reasons, select_by_prior
from backend.models.segmenters import DecodePlan, MaskCandidate, Prompt, SegmenterInput, require_rgb

T = TypeVar("T")
_BYTES_A_CELL = 9_000
"""Memory of a decoded prompt for each cell of the image embedding: measured, with the upscaled maps in it."""
_DECODE_MB_ON_CPU = 80.0
"""Two prompts a pass, whose caches hold no more; measured: a prompt of eight in 0.76 of a lone one's time."""
_DECODE_SHARE_OF_GPU = 1 / 16
"""Of its memory: 29 prompts a pass with 16 GB, 145 with 80 GB."""
_NOT_SUPPORTED = "the score map is below 0.5 under these points"
_ASKED_ALREADY = "on an object that other points have asked for"


@dataclass(frozen=True)
class SamOptions:
    """Sizes of a SAM segmenter.

    Attributes:
        working_px: longer side of the frame of prompts and candidates.
        decode_mb: memory that one decoding pass may take, in 2**20 bytes; prompts beyond it go into the next pass.
            0: what is quickest on the device.
        most_objects: of one score map, those with the most of it; each is a prompt, 30 ms on two cores. A score map in
            shreds is what it is bounded for: of a tray of 24 coins all shall be found.
        least_share: of the score map's part that the largest object holds; what has less is a crumb, no prompt. With
            score maps of `lite` one in eight of the pieces below a hundredth was on the object.
        is_half: keep image embeddings in float16 (2 MB an image); float32 is for comparisons.
        selection: which candidates of a score map are kept.
    """

    working_px: int = 512
    decode_mb: float = 0.0
    most_objects: int = 32
    least_share: float = 0.01
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


@dataclass(frozen=True, eq=False)
class SamNetworks:
    """A model's parts, and its frames.

    Attributes:
        encoder: image encoder.
        decoder: prompts and image embeddings to logits and predicted IoU, as `SamDecoder`.
        input_px, logits_px: sides of the input and the logits frame.
        mean, std: (3, 1, 1) float32 of the encoder's input, for pixels as `_normalised` takes them.
    """

    encoder: nn.Module
    decoder: nn.Module
    input_px: int
    logits_px: int
    mean: Tensor
    std: Tensor


class SamSegmenter:
    """Masks by SAM or MobileSAM.

    Args:
        sam: a `Sam` with its parts (`models.sam_networks.build_sam`, or a small one of its layout).
        signature: name and weights of it.
        options: sizes and thresholds.
        device: where it runs.
    """

    levels: ClassVar[tuple[str, ...]] = ("image_embedding",)
    """Arrays of an embedding that the decoder takes."""

    def __init__(
        self,
        sam: nn.Module,
        signature: str,
        options: SamOptions = SamOptions(),
        *,
        device: torch.device = torch.device("cpu"),  # noqa: B008 (a value)
    ) -> None:
        self._options = options
        networks = self._networks(sam.eval())
        self._input_px, self._logits_px = networks.input_px, networks.logits_px
        self._colours = Constants(networks.mean, networks.std)
        make_cancellable(networks.encoder)
        self._encoder = DeviceRunner(networks.encoder, device)
        # Eight milliseconds of a decoder are not worth the precision of its mask borders.
        self._decoder = DeviceRunner(networks.decoder, device, uses_half=False, is_urgent=True)
        self.device_runners = (self._encoder, self._decoder)
        self.signature = f"{signature}:{options.working_px}px:{options.selection.digest()}"
        self.points_add_up = False

    def _networks(self, sam: Any) -> SamNetworks:
        fuse_attention(sam.image_encoder)
        return SamNetworks(
            sam.image_encoder,
            SamDecoder(sam.prompt_encoder, sam.mask_decoder),
            input_px=int(sam.image_encoder.img_size),
            logits_px=4 * int(sam.prompt_encoder.image_embedding_size[0]),
            mean=sam.pixel_mean.cpu().float(),
            std=sam.pixel_std.cpu().float(),
        )

    @property
    def batch_size(self) -> int:
        """Images that `embed_batch` takes to the device at a time."""
        return max(1, self._encoder.preferred_batch_size // 2)

    # -- images

    def embed(self, image: Image) -> Arrays:
        """The image embedding of (H, W, 3) uint8 RGB: `image_embedding` (C, 64, 64) and `input_hw` (2,).

        Raises:
            BadInputError: not such an image.
        """
        return self.embed_batch([image])[0]

    def embed_batch(self, images: Sequence[Image]) -> list[Arrays]:
        """The same for several images; all share SAM's square input, whatever their sizes."""
        return self.embed_async([self.prepare(image) for image in images])()

    def prepare(self, image: Image) -> SegmenterInput:
        """What `embed_async` takes in place of an image: (h, w, 3) uint8 in the input frame. Needs no device.

        Raises:
            BadInputError: not (H, W, 3) uint8.
        """
        require_rgb(image)
        height, width = self.input_hw(image.shape[0], image.shape[1])
        # Pillow's bilinear, which averages where it shrinks: the resizing that SAM was trained with.
        resized = PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BILINEAR)
        return SegmenterInput(torch.from_numpy(np.array(resized)), (image.shape[0], image.shape[1]))

    def embed_async(self, prepared: Sequence[SegmenterInput]) -> Callable[[], list[Arrays]]:
        """Begin `embed_batch` of what `prepare` made; gives what waits for it."""
        dtype = torch.float16 if self._options.is_half else torch.float32

        def forward(network: nn.Module, batch: Tensor) -> Tensor:
            embeddings: Tensor = network(batch)
            return embeddings.to(dtype)

        wait = self._encoder.run_async(
            [one.pixels for one in prepared],
            forward,
            at_once=self.batch_size,
            assemble=lambda there: torch.stack([self._normalised(pixels) for pixels in there]),
            kind=dtype,
        )
        return lambda: [
            {"image_embedding": embedding.numpy(), "input_hw": np.array(one.pixels.shape[:2], np.int64)}
            for embedding, one in zip(wait(), prepared, strict=True)
        ]

    def _normalised(self, pixels: Tensor) -> Tensor:
        """(h, w, 3) uint8 to SAM's square input, float32."""
        height, width = pixels.shape[:2]
        mean, std = self._colours.on(pixels.device)
        inside = (pixels.permute(2, 0, 1) - mean) / std
        return F.pad(inside, (0, self._input_px - width, 0, self._input_px - height))

    def input_hw(self, height: int, width: int) -> tuple[int, int]:
        """Size of an image of (height, width) px in the input frame, as `ResizeLongestSide` rounds it."""
        scale = self._input_px / max(height, width)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def embedded_hw(self, embedding: Embedding) -> tuple[int, int]:
        """Size of an embedding's image in the input frame."""
        height, width = embedding["input_hw"].astype(np.int64)
        return int(height), int(width)

    def working_hw(self, embedding: Embedding) -> tuple[int, int]:
        """Size of the image in the working frame."""
        height, width = self.embedded_hw(embedding)
        scale = self._options.working_px / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    # -- prompts

    def decode_prompts(
        self, embedding: Embedding, prompts: Sequence[SamPrompt], *, is_multimask: bool
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
        images = Images(embeddings, self.levels)
        answers: dict[int, T] = {}
        for positions in by_shape.values():
            group = [prompts[position] for position in positions]
            decoded = self._decoder.run_parts(
                len(positions),
                min(len(positions), self._prompts_at_once(images.cells)),
                forward_of(self._decoder, images, [owners[position] for position in positions], group, is_multimask),
                lambda answer, part, own=positions: finish(answer[0], answer[1], own[part]),  # type: ignore[misc]
            )
            answers.update(zip(positions, decoded, strict=True))
        return [answers[position] for position in range(len(prompts))]

    def _prompts_at_once(self, cells: int) -> int:
        memory_mb = self._decoder.memory_mb
        quickest_mb = _DECODE_MB_ON_CPU if memory_mb is None else _DECODE_SHARE_OF_GPU * memory_mb
        decode_mb = self._options.decode_mb or quickest_mb
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

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[MaskCandidate]:
        """Candidates in the working frame.

        Prompts with a prior propose what the score map supports. Those of one score map are joined object by object
        first (a piece of the map above 0.5 is one): a decoder pass a cluster of points would say the same thing several
        times, and decoding is what costs. The score map goes into SAM's mask input; of SAM's three masks the one that
        fits the score map best is kept, if it fits at all. A candidate answers the first prompt with a point in it.
        A prompt without a prior is a user's scribble: what it marks is the answer, one candidate at most.
        """
        return self.decode_planned([self.plan(embedding, prompts)])[0]

    def plan(self, embedding: Embedding, prompts: Sequence[Prompt]) -> "_Plan":
        """What `decode_planned` needs for `decode` of this; needs no device."""
        frame = _Frame.of(self, embedding)
        return _Plan(embedding, prompts, frame, *self._objects(frame, prompts))

    def decode_planned(self, plans: Sequence[DecodePlan]) -> list[list[MaskCandidate]]:
        """Decode what was planned: the proposals of all plans share passes, of whichever image they are."""
        own = [plan if isinstance(plan, _Plan) else self.plan(plan.embedding, plan.prompts) for plan in plans]
        with torch.inference_mode():
            found = self._propose(own)
            for plan, candidates in zip(own, found, strict=True):
                for position, prompt in enumerate(plan.prompts):
                    if prompt.prior is None and (marked := self._decode_scribble(plan.embedding, prompt)) is not None:
                        candidates.append(MaskCandidate(*marked, position))
        return [sorted(candidates, key=lambda candidate: candidate.prompt_index) for candidates in found]

    def _propose(self, plans: "Sequence[_Plan]") -> list[list[MaskCandidate]]:
        found = [list(plan.refused) for plan in plans]
        # Embeddings that are asked twice, for two labels, are one image.
        embeddings = list({id(plan.embedding): plan.embedding for plan in plans}.values())
        index_of = {id(embedding): index for index, embedding in enumerate(embeddings)}
        asked = [(number, *one) for number, plan in enumerate(plans) for one in plan.objects]

        refused = rejection_reasons(self._options.selection)

        def finish(logits: Tensor, predicted_iou: Tensor, group: Sequence[int]) -> list[tuple[Mask, float] | str]:
            answers: list[tuple[Mask, float] | str] = [""] * len(group)
            by_frame: dict[_Frame, list[int]] = {}
            for row, one in enumerate(group):
                by_frame.setdefault(plans[asked[one][0]].frame, []).append(row)
            # Chosen in the logits frame, where a mask costs little; only the best one is brought to the working size.
            for frame, rows in by_frame.items():
                prior = torch.stack([asked[group[row]][3] for row in rows]).to(logits.device)
                own = logits[rows]
                masks = own[:, :, : frame.small_hw[0], : frame.small_hw[1]] > 0
                chosen = select_by_prior(masks, predicted_iou[rows], prior, self._options.selection)
                kept = torch.nonzero(chosen.index >= 0)[:, 0]
                full = self.logits_at(own[kept, chosen.index[kept]][:, None], frame.input_hw, frame.working_hw)[:, 0]
                scores = chosen.score[kept].tolist()
                if len(kept) < len(rows):
                    for row, criteria_met in zip(rows, chosen.criteria_met.tolist(), strict=True):
                        answers[row] = refused[min(criteria_met, len(refused) - 1)]
                for place, mask, score in zip(kept.tolist(), (full > 0).cpu().numpy(), scores, strict=True):
                    answers[rows[place]] = mask.copy(), score
            return answers

        owners = [index_of[id(plans[number].embedding)] for number, _, _, _ in asked]
        prompts = [prompt for _, _, prompt, _ in asked]
        decoded = self._decode(embeddings, owners, prompts, finish, is_multimask=True) if asked else []
        for (number, position, _, _), answer in zip(asked, decoded, strict=True):
            if isinstance(answer, str):
                found[number].append(plans[number].frame.refused(answer, position))
            else:
                found[number].append(MaskCandidate(*answer, position))
        return found

    def _objects(
        self, frame: "_Frame", prompts: Sequence[Prompt]
    ) -> tuple[list[tuple[int, SamPrompt, Tensor]], list[MaskCandidate]]:
        """The pieces of the prompts' score maps: first prompt with a point on it, what to ask, the small map; and of
        prompts that are no piece's first, why they are not."""
        objects: list[tuple[int, SamPrompt, Tensor]] = []
        why_not: dict[int, str] = {}
        too_small = (
            f"their object is not among the {self._options.most_objects} largest, or has less than "
            f"{self._options.least_share:g} of the largest one's score map"
        )
        by_prior: dict[int, list[int]] = {}
        for position, prompt in enumerate(prompts):
            if prompt.prior is not None:
                by_prior.setdefault(id(prompt.prior), []).append(position)
        for own in by_prior.values():
            prior = prompts[own[0]].prior
            assert prior is not None
            score_map = frame.shrink(prior)
            logits = prior_to_logits(score_map, frame.input_hw, input_px=self._input_px, logits_px=self._logits_px)
            pieces = points_by_object([prompts[position].scribble for position in own], prior)
            why_not |= dict.fromkeys(own, _NOT_SUPPORTED)
            why_not |= {own[index]: too_small for indices, _, _ in pieces for index in indices}
            large = [piece for piece in pieces if piece[2] >= self._options.least_share]
            for (first, *others), scribble, _ in large[: self._options.most_objects]:
                why_not |= {own[index]: _ASKED_ALREADY for index in (first, *others)}
                asked = scribble_to_prompts(scribble, frame.input_hw, mask_logits=logits, most_points=3)
                objects += [(own[first], one, torch.from_numpy(score_map)) for one in asked]
        for first, _, _ in objects:
            why_not.pop(first, None)
        return objects, [frame.refused(why, position) for position, why in why_not.items()]

    def _decode_scribble(self, embedding: Embedding, prompt: Prompt) -> tuple[Mask, float] | None:
        """The union of what its boxes and points mean; points that it leaves out are asked for by themselves."""
        scribble, input_hw = prompt.scribble, self.embedded_hw(embedding)
        found = self._best_masks(embedding, scribble_to_prompts(scribble, input_hw))
        missed = uncovered_points(scribble, [mask for mask, _ in found])
        if found and missed is not None:
            found += self._best_masks(embedding, scribble_to_prompts(missed, input_hw))
        masks = [mask for mask, _ in found if mask.any()]
        if not masks:
            return None
        joined: Mask = np.logical_or.reduce(masks)
        return joined, float(np.mean([score for mask, score in found if mask.any()]))

    def _best_masks(self, embedding: Embedding, prompts: Sequence[SamPrompt]) -> list[tuple[Mask, float]]:
        """For each prompt the mask that SAM itself believes in most. A lone click is ambiguous: it gets three."""
        input_hw, working_hw = self.embedded_hw(embedding), self.working_hw(embedding)

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


@dataclass(frozen=True)
class _Frame:
    """Sizes of an image: in the input, the logits and the working frame."""

    input_hw: tuple[int, int]
    small_hw: tuple[int, int]
    working_hw: tuple[int, int]

    @classmethod
    def of(cls, segmenter: SamSegmenter, embedding: Embedding) -> "_Frame":
        input_hw = segmenter.embedded_hw(embedding)
        small_hw = logits_hw(input_hw, input_px=segmenter._input_px, logits_px=segmenter._logits_px)
        return cls(input_hw, small_hw, segmenter.working_hw(embedding))

    def shrink(self, prior: NDArray[np.float32]) -> NDArray[np.float32]:
        """A score map in the logits frame."""
        size = self.small_hw[1], self.small_hw[0]
        return np.asarray(cv2.resize(prior, size, interpolation=cv2.INTER_AREA), np.float32)

    def refused(self, why: str, prompt_index: int) -> MaskCandidate:
        """Nothing, and why."""
        return MaskCandidate(np.zeros(self.working_hw, bool), 0.0, prompt_index, why)


@dataclass(frozen=True, eq=False)
class _Plan(DecodePlan):
    """What is asked of one image: its prompts, and of those with a score map its objects: (prompt that found it, what
    to ask SAM, (h, w) float32 score map in the logits frame); and prompts that nothing is asked for."""

    frame: _Frame
    objects: Sequence[tuple[int, SamPrompt, Tensor]]
    refused: Sequence[MaskCandidate]
