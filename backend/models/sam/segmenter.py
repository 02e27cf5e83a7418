"""SAM, MobileSAM and SAM 2 as segmenters, put together of their parts. No image is kept, so threads share them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backend.core.types import Arrays, Image, Mask
from backend.models.cpu_engine import CpuEngine
from backend.models.device.openvino_network import OpenVinoNetwork
from backend.models.sam.candidates import CandidateGeneration, SamPlan
from backend.models.sam.image_embedder import ImageEmbedder, SamImageEmbedder
from backend.models.sam.options import SamOptions
from backend.models.sam.package_decoder import PackageDecoder
from backend.models.sam.prompt_decoding import PromptDecoder, SamDecoder
from backend.models.sam.prompts import SamPrompt, scribble_to_prompts, uncovered_points
from backend.models.sam.sam2_image_embedder import Sam2Decoder, Sam2ImageEmbedder
from backend.models.segmenters import DecodePlan, Embedding, MaskCandidate, Prompt, SegmenterInput

CPU = torch.device("cpu")
DEFAULT_OPTIONS = SamOptions()


@dataclass(frozen=True, eq=False)
class Decoded:
    """The mask decoder's answer to one prompt.

    Attributes:
        logits: (C, 256, 256) float32 in the logits frame, above 0 inside; C is 3 or 1.
        predicted_iou: (C,) float32, SAM's own prediction, roughly in [0, 1].
    """

    logits: Tensor
    predicted_iou: Tensor


class SamSegmenter:
    """Segments with any kind of SAM.

    Args:
        embedder: the image side.
        prompt_decoder: the prompt side.
        signature: name and weights.
        options: sizes and thresholds.
    """

    def __init__(
        self, embedder: ImageEmbedder, prompt_decoder: PromptDecoder, signature: str, options: SamOptions
    ) -> None:
        self.embedder = embedder
        self.prompt_decoder = prompt_decoder
        self._generation = CandidateGeneration(embedder, prompt_decoder, options)
        self.device_runners = (embedder.runner, prompt_decoder.runner)
        self.signature = f"{signature}:{options.signature()}"
        self.points_add_up = False
        self.reads_similarity = False

    def embed(self, image: Image) -> Arrays:
        """Embed (H, W, 3) uint8 RGB.

        Raises:
            BadInputError: not such an image.
        """
        return self.embed_batch([image])[0]

    def embed_batch(self, images: Sequence[Image]) -> list[Arrays]:
        """Embed several images; all share SAM's square input, whatever their sizes."""
        return self.embed_async([self.prepare(image) for image in images])()

    def prepare(self, image: Image) -> SegmenterInput:
        """Return an image as `embed_async` takes it. Needs no device.

        Raises:
            BadInputError: not (H, W, 3) uint8.
        """
        return self.embedder.prepare(image)

    def embed_async(self, prepared: Sequence[SegmenterInput]) -> Callable[[], list[Arrays]]:
        """Start to embed what `prepare` made; return what waits for the embeddings."""
        return self.embedder.embed_async(prepared)

    def working_hw(self, embedding: Embedding) -> tuple[int, int]:
        """Return the size of the image in the working frame."""
        return self.embedder.working_hw(embedding)

    def decode_prompts(
        self, embedding: Embedding, prompts: Sequence[SamPrompt], *, is_multimask: bool
    ) -> list[Decoded]:
        """Return the mask decoder's answers, in the order of the prompts, each as if it were alone.

        Args:
            embedding: of the image, as `embed` gives it.
            prompts: in the input frame.
            is_multimask: three masks per prompt, for prompts that could mean several things; otherwise one.
        """

        def finish(logits: Tensor, predicted_iou: Tensor, positions: Sequence[int]) -> list[Decoded]:
            both = zip(logits.cpu(), predicted_iou.cpu(), strict=True)
            return [Decoded(one, predicted) for one, predicted in both]

        return self.prompt_decoder.decode([embedding], [0] * len(prompts), prompts, finish, is_multimask=is_multimask)

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[MaskCandidate]:
        """Return candidates in the working frame.

        Prompts with a prior give what the score map supports (`CandidateGeneration`). A candidate answers the first
        prompt with a point in it. A prompt without a prior is a user's scribble: what it marks is the answer, up to one
        candidate.
        """
        return self.decode_planned([self.plan(embedding, prompts)])[0]

    def plan(self, embedding: Embedding, prompts: Sequence[Prompt]) -> SamPlan:
        """Work out what `decode_planned` asks. Needs no device."""
        return self._generation.plan(embedding, prompts)

    def decode_planned(self, plans: Sequence[DecodePlan]) -> list[list[MaskCandidate]]:
        """Decode what was planned: the prompts of all plans share passes, of whichever image they are."""
        own = [plan if isinstance(plan, SamPlan) else self.plan(plan.embedding, plan.prompts) for plan in plans]
        with torch.inference_mode():
            found = self._generation.decode(own)
            for plan, candidates in zip(own, found, strict=True):
                for position, prompt in enumerate(plan.prompts):
                    if prompt.prior is None and (marked := self._decode_scribble(plan.embedding, prompt)) is not None:
                        candidates.append(MaskCandidate(*marked, position))
        return [sorted(candidates, key=lambda candidate: candidate.prompt_index) for candidates in found]

    def _decode_scribble(self, embedding: Embedding, prompt: Prompt) -> tuple[Mask, float] | None:
        """Return the union of what boxes and points mean; points that it leaves out are asked for by themselves."""
        scribble, input_hw = prompt.scribble, self.embedder.embedded_hw(embedding)
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
        """Return for each prompt the mask of the highest predicted IoU. A lone point is ambiguous: it gets three."""
        input_hw, working_hw = self.embedder.embedded_hw(embedding), self.working_hw(embedding)

        def finish(logits: Tensor, predicted_iou: Tensor, group: Sequence[int]) -> list[tuple[Mask, float]]:
            highest, index = predicted_iou.max(dim=1)
            best = logits[torch.arange(len(group), device=logits.device), index]
            full = (self.embedder.logits_at(best[:, None], input_hw, working_hw)[:, 0] > 0).cpu().numpy()
            return [(mask.copy(), score) for mask, score in zip(full, highest.clamp(0.0, 1.0).tolist(), strict=True)]

        found: list[tuple[Mask, float]] = []
        for is_ambiguous in (True, False):
            group = [prompt for prompt in prompts if prompt.is_ambiguous == is_ambiguous]
            found += self.prompt_decoder.decode([embedding], [0] * len(group), group, finish, is_multimask=is_ambiguous)
        return found


def sam_segmenter(
    sam: nn.Module,
    signature: str,
    options: SamOptions = DEFAULT_OPTIONS,
    *,
    device: torch.device = CPU,
    engine: CpuEngine | None = None,
    converted: Path | None = None,
) -> SamSegmenter:
    """Put a segmenter together of a SAM or MobileSAM.

    Args:
        sam: a `Sam` with its parts (`networks.build_sam`, or a small one of its layout).
        signature: its name and weights.
        options: sizes and thresholds.
        device: where it runs.
        engine: what runs the image encoder on a processor; None: PyTorch.
        converted: file of the image encoder as OpenVINO has it; None: not kept.
    """
    own: Any = sam.eval()
    embedder = SamImageEmbedder(own, options, device, engine, converted)
    if engine is not None and isinstance(embedder.runner.network, OpenVinoNetwork):
        signature += engine.signature_part
    network = (SamDecoder if options.is_fast else PackageDecoder)(own.prompt_encoder, own.mask_decoder)
    decoder = PromptDecoder(network, embedder.levels, device, decode_mb=options.decode_mb)
    return SamSegmenter(embedder, decoder, signature, options)


def sam2_segmenter(
    sam: nn.Module, signature: str, options: SamOptions = DEFAULT_OPTIONS, *, device: torch.device = CPU
) -> SamSegmenter:
    """Put a segmenter together of a SAM 2.

    Args:
        sam: a `SAM2Base` (`sam2_networks.build_sam2`, or a small one of its layout).
        signature: its name and weights.
        options: sizes and thresholds.
        device: where it runs.
    """
    own: Any = sam.eval()
    embedder = Sam2ImageEmbedder(own, options, device)
    network = Sam2Decoder(own.sam_prompt_encoder, own.sam_mask_decoder, is_fast=options.is_fast)
    decoder = PromptDecoder(network, embedder.levels, device, decode_mb=options.decode_mb)
    return SamSegmenter(embedder, decoder, signature, options)
