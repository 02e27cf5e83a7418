"""Options of SAM segmenters."""

from dataclasses import dataclass, field

from backend.core.types import SamPath
from backend.models.options_digest import options_digest


@dataclass(frozen=True)
class SelectionOptions:
    """Thresholds of mask candidates. None is tuned: no SAM weights were at hand when they were set.

    Attributes:
        minimum_iou: SAM's predicted IoU below which a mask is dropped.
        minimum_contrast: least difference of the score map's mean inside a mask and in a ring around it.
        ring_percent: width of that ring, percent of the longer side of the frame.
        minimum_prior: least mean of the score map inside a mask.
    """

    minimum_iou: float = 0.5
    minimum_contrast: float = 0.1
    ring_percent: float = 4.0
    minimum_prior: float = 0.35


KEEP_EVERYTHING = SelectionOptions(minimum_iou=-99.0, minimum_contrast=-1.0, minimum_prior=0.0)
"""Thresholds for random weights, which predict nothing: benchmarks would miss what comes after the decoder."""


@dataclass(frozen=True)
class SamOptions:
    """Sizes and thresholds of a SAM segmenter.

    Attributes:
        working_px: longer side of the frame of prompts and candidates.
        decode_mb: memory of one decoding pass, in 2**20 bytes; prompts beyond it go into the next pass. 0: what is
            fastest on the device.
        most_objects: largest number of objects of one score map that are prompted, those with most of it first. A
            prompt takes 30 ms on two cores. Bounds the time of a score map in shreds; all of 24 coins on a tray fit.
        least_share: part of the largest object's score map below which a piece is a small component and no prompt.
            With score maps of `lite`, one in eight of the pieces below a hundredth lay on the object.
        most_points: positive points of the prompt for one object of a score map.
        is_half: keep image embeddings in float16 (2 MB per image); float32 is for comparisons.
        path: how the networks are run.
        selection: which mask candidates of a score map are kept.
    """

    working_px: int = 512
    decode_mb: float = 0.0
    most_objects: int = 32
    least_share: float = 0.01
    most_points: int = 3
    is_half: bool = True
    path: SamPath = "fast"
    selection: SelectionOptions = field(default_factory=SelectionOptions)

    @property
    def is_fast(self) -> bool:
        """Return whether this project's own forward passes run, not the packages'."""
        return self.path == "fast"

    def signature(self) -> str:
        """Return the part of a segmenter's signature that tells these options: no two that change masks have one."""
        # How many prompts share a pass changes no answer.
        return f"{self.working_px}px:{self.path}:{options_digest(self, without=('decode_mb',))}"
