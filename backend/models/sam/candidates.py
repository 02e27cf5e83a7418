"""Mask candidates of score maps: one for each object that a score map supports."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backend.core.types import Mask
from backend.models.sam.image_embedder import ImageEmbedder
from backend.models.sam.options import SamOptions
from backend.models.sam.prompt_decoding import PromptDecoder
from backend.models.sam.prompts import SamPrompt, logits_hw, points_by_object, prior_to_logits, scribble_to_prompts
from backend.models.sam.selection import rejection_reasons, select_by_prior
from backend.models.segmenters import DecodePlan, Embedding, MaskCandidate, Prompt

_NOT_SUPPORTED = "the score map is below 0.5 under these points"
_ASKED_ALREADY = "on an object that other points have asked for"


@dataclass(frozen=True)
class Frame:
    """The sizes of an image.

    Attributes:
        input_hw, small_hw, working_hw: in the input, the logits and the working frame.
    """

    input_hw: tuple[int, int]
    small_hw: tuple[int, int]
    working_hw: tuple[int, int]

    def shrink(self, prior: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a score map in the logits frame."""
        size = self.small_hw[1], self.small_hw[0]
        return np.asarray(cv2.resize(prior, size, interpolation=cv2.INTER_AREA), np.float32)

    def rejected(self, reason: str, prompt_index: int) -> MaskCandidate:
        """Return an empty candidate with the reason."""
        return MaskCandidate(np.zeros(self.working_hw, bool), 0.0, prompt_index, reason)


@dataclass(frozen=True, eq=False)
class ObjectPrompt:
    """A prompt for one object of a score map.

    Attributes:
        position: of the first prompt with a point on the object.
        prompt: in the input frame.
        score_map: (h, w) float32 in the logits frame.
    """

    position: int
    prompt: SamPrompt
    score_map: Tensor


@dataclass(frozen=True, eq=False)
class SamPlan(DecodePlan):
    """The prompts that SAM gets for one image.

    Attributes:
        frame: sizes of the image.
        objects: of the prompts with a score map.
        rejected: for those of them that nothing is asked for.
    """

    frame: Frame
    objects: Sequence[ObjectPrompt]
    rejected: Sequence[MaskCandidate]


class CandidateGeneration:
    """Plans and decodes prompts with score maps.

    Prompts of one score map are joined object by object first (a piece of the map above 0.5 is one): a decoder pass for
    each cluster of points would give the same mask several times, and decoding is what costs. The score map goes into
    SAM's mask input; of SAM's three masks the one that fits the score map best is kept, if it fits at all.

    Args:
        embedder: tells the frames.
        decoder: runs the passes.
        options: of the segmenter.
    """

    def __init__(self, embedder: ImageEmbedder, decoder: PromptDecoder, options: SamOptions) -> None:
        self._embedder = embedder
        self._decoder = decoder
        self._options = options

    def plan(self, embedding: Embedding, prompts: Sequence[Prompt]) -> SamPlan:
        """Work out what to ask. Needs no device."""
        input_hw = self._embedder.embedded_hw(embedding)
        small_hw = logits_hw(input_hw, input_px=self._embedder.input_px, logits_px=self._embedder.logits_px)
        frame = Frame(input_hw, small_hw, self._embedder.working_hw(embedding))
        objects: list[ObjectPrompt] = []
        reasons: dict[int, str] = {}
        by_prior: dict[int, list[int]] = {}
        for position, prompt in enumerate(prompts):
            if prompt.prior is not None:
                by_prior.setdefault(id(prompt.prior), []).append(position)
        for positions in by_prior.values():
            found, own_reasons = self._objects(frame, positions, prompts)
            objects += found
            reasons |= own_reasons
        rejected = [frame.rejected(reason, position) for position, reason in reasons.items()]
        return SamPlan(embedding, prompts, frame, objects, rejected)

    def _objects(
        self, frame: Frame, positions: Sequence[int], prompts: Sequence[Prompt]
    ) -> tuple[list[ObjectPrompt], dict[int, str]]:
        """Return the prompts for the objects of one score map; and why those at other positions are not asked for."""
        prior = prompts[positions[0]].prior
        assert prior is not None
        score_map = frame.shrink(prior)
        logits = prior_to_logits(
            prior, frame.input_hw, input_px=self._embedder.input_px, logits_px=self._embedder.logits_px
        )
        pieces = points_by_object([prompts[position].scribble for position in positions], prior)
        too_small = (
            f"their object is not among the {self._options.most_objects} largest, or has less than "
            f"{self._options.least_share:g} of the largest one's score map"
        )
        reasons = dict.fromkeys(positions, _NOT_SUPPORTED)
        reasons |= {positions[index]: too_small for indices, _, _ in pieces for index in indices}
        objects: list[ObjectPrompt] = []
        large = [piece for piece in pieces if piece[2] >= self._options.least_share]
        for (first, *others), scribble, _ in large[: self._options.most_objects]:
            reasons |= {positions[index]: _ASKED_ALREADY for index in (first, *others)}
            asked = scribble_to_prompts(
                scribble, frame.input_hw, mask_logits=logits, most_points=self._options.most_points
            )
            objects += [ObjectPrompt(positions[first], one, torch.from_numpy(score_map)) for one in asked]
        for one in objects:
            reasons.pop(one.position, None)
        return objects, reasons

    def decode(self, plans: Sequence[SamPlan]) -> list[list[MaskCandidate]]:
        """Return the candidates of each plan; the objects of all plans share passes, of whichever image they are."""
        found = [list(plan.rejected) for plan in plans]
        asked = [(number, one) for number, plan in enumerate(plans) for one in plan.objects]
        if not asked:
            return found
        # Embeddings that are asked twice, for two labels, are one image.
        embeddings = list({id(plan.embedding): plan.embedding for plan in plans}.values())
        index_of = {id(embedding): index for index, embedding in enumerate(embeddings)}
        decoded = self._decoder.decode(
            embeddings,
            [index_of[id(plans[number].embedding)] for number, _ in asked],
            [one.prompt for _, one in asked],
            lambda logits, predicted_iou, group: self._choose(
                logits, predicted_iou, [asked[one][1] for one in group], [plans[asked[one][0]].frame for one in group]
            ),
            is_multimask=True,
        )
        for (number, one), answer in zip(asked, decoded, strict=True):
            if isinstance(answer, str):
                found[number].append(plans[number].frame.rejected(answer, one.position))
            else:
                found[number].append(MaskCandidate(*answer, one.position))
        return found

    def _choose(
        self, logits: Tensor, predicted_iou: Tensor, asked: Sequence[ObjectPrompt], frames: Sequence[Frame]
    ) -> list[tuple[Mask, float] | str]:
        """Return for each object the best of its masks and its score, or the reason why none is kept."""
        reasons = rejection_reasons(self._options.selection)
        answers: list[tuple[Mask, float] | str] = [""] * len(asked)
        by_frame: dict[Frame, list[int]] = {}
        for row, frame in enumerate(frames):
            by_frame.setdefault(frame, []).append(row)
        # Chosen in the logits frame, where a mask costs little; only the best one is brought to the working size.
        for frame, rows in by_frame.items():
            prior = torch.stack([asked[row].score_map for row in rows]).to(logits.device)
            own = logits[rows]
            masks = own[:, :, : frame.small_hw[0], : frame.small_hw[1]] > 0
            chosen = select_by_prior(masks, predicted_iou[rows], prior, self._options.selection)
            kept = torch.nonzero(chosen.index >= 0)[:, 0]
            best = own[kept, chosen.index[kept]][:, None]
            full = self._embedder.logits_at(best, frame.input_hw, frame.working_hw)[:, 0]
            scores = chosen.score[kept].tolist()
            if len(kept) < len(rows):
                for row, criteria_met in zip(rows, chosen.criteria_met.tolist(), strict=True):
                    answers[row] = reasons[min(criteria_met, len(reasons) - 1)]
            for place, mask, score in zip(kept.tolist(), (full > 0).cpu().numpy(), scores, strict=True):
                answers[rows[place]] = mask.copy(), score
        return answers
