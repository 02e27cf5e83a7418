"""The profiles: one table of which models work together, and what was measured or chosen for them.

Importing this module loads no model and no PyTorch. `loading` builds what a row names.
"""

from dataclasses import dataclass, replace

from backend.errors import ConfigurationError
from backend.models.sam.options import SelectionOptions

SAM_INPUT_PX = 1024
"""Longer side of what every SAM reads, px."""
_DECODE_MARGIN = 1.7


@dataclass(frozen=True)
class Profile:
    """One row of the table.

    Attributes:
        name: value of SOFTMATCHER_PROFILE.
        purpose: what it is for, in a few words.
        encoder: name of the encoder: timm's, or one of `loading.OWN_ENCODERS`.
        segmenter: name of the segmenter, one of `loading.SEGMENTERS`.
        side_px: an image is encoded at about side_px ** 2 pixels.
        temperature: softmax scale of the matching; None: photographs tell it when the encoder is loaded.
        similarity_floor: cosine below which two patches have nothing in common; None likewise.
        calibration: file of package data that turns mask features into presence probability and expected IoU.
        is_downloaded: encoder and segmenter have weights to download, and others can be named in their place.
        points: positive points of the prompt for one object of a score map; None: the segmenter takes all.
        thresholds: which mask candidates of a score map are kept; None: the segmenter has no such thresholds.
        text_encoder: name of the text encoder whose space the encoder shares, one of `text.loading.TEXT_ENCODERS`;
            None: phrases are not used.
        text_weights: the models of the catalogue whose files the text encoder is built of.
    """

    name: str
    purpose: str
    encoder: str
    segmenter: str
    side_px: int
    temperature: float | None
    similarity_floor: float | None
    calibration: str
    is_downloaded: bool = True
    points: int | None = None
    thresholds: SelectionOptions | None = None
    text_encoder: str | None = None
    text_weights: tuple[str, ...] = ()

    @property
    def weights(self) -> tuple[str, ...]:
        """Return the names of the models whose weights have to be downloaded; () if everything comes along."""
        if not self.is_downloaded:
            return ()
        return tuple(dict.fromkeys([self.encoder, self.segmenter, *self.text_weights]))

    @property
    def decode_side_px(self) -> int:
        """Return the side of the square whose pixels a decoded image has at least: more is shrunk away by the models.

        1.7 times what the larger of both networks reads: what a reduced JPEG lacks is averaged out by the models' own
        shrinking.
        """
        return round(_DECODE_MARGIN * max(self.side_px, SAM_INPUT_PX if self.runs_sam else 0))

    @property
    def runs_sam(self) -> bool:
        """Return whether the segmenter is a SAM of some kind, which SOFTMATCHER_SAM_PATH applies to."""
        return self.thresholds is not None


def _sam_profile(name: str, purpose: str, encoder: str, segmenter: str, side_px: int) -> Profile:
    """Return a row of DINOv2 and SAM. No weights of either were at hand: its thresholds are estimates, not measured."""
    return Profile(
        name, purpose, encoder, segmenter, side_px, temperature=None, similarity_floor=None, calibration="lite.json",
        points=3, thresholds=SelectionOptions(),
    )  # fmt: skip


_TABLE = (
    Profile(
        "lite", "trying it, teams without a GPU, CI", "efficientnet_lite2", "graph_cut", 448,
        temperature=0.05, similarity_floor=0.3, calibration="lite.json", is_downloaded=False,
    ),
    _sam_profile("mobile", "laptops", "vit_small_patch14_dinov2", "mobile_sam", 448),
    # 518 px is what DINOv2's position table was made for.
    _sam_profile("base", "one GPU", "vit_base_patch14_dinov2", "sam_vit_b", 518),
    _sam_profile("large", "accuracy", "vit_large_patch14_dinov2", "sam_vit_h", 518),
    replace(
        _sam_profile("text", "phrases beside scribbles", "vit_base_patch14_reg1_tipsv2", "sam_vit_b", 448),
        text_encoder="tipsv2", text_weights=("vit_base_patch14_reg1_tipsv2", "tipsv2_tokenizer"),
    ),
    replace(
        _sam_profile("clip", "phrases, by CLIP", "vit_base_patch16_clip_quickgelu_224", "sam_vit_b", 448),
        text_encoder="clip", text_weights=("vit_base_patch16_clip_quickgelu_224", "clip_tokenizer"),
    ),
    _sam_profile("sam2", "SAM 2.1 on one GPU", "vit_base_patch14_dinov2", "sam2.1_hiera_base_plus", 518),
)  # fmt: skip

PROFILES = {profile.name: profile for profile in _TABLE}
"""All profiles by name."""


def find_profile(name: str) -> Profile:
    """Return the profile of a name.

    Raises:
        ConfigurationError: no such profile.
    """
    profile = PROFILES.get(name)
    if profile is None:
        raise ConfigurationError(f"profile must be one of {', '.join(PROFILES)}, got {name}; set SOFTMATCHER_PROFILE")
    return profile
