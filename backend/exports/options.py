"""Options of an export: one value for the command line and for HTTP."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from backend.errors import BadInputError

Source = Literal["annotations", "predictions", "both"]
Images = Literal["include", "path"]
Annotators = Literal["newest", "all"]

SPLITS = ("train", "val", "test")
_MOST_TOLERANCE_PX = 100.0


@dataclass(frozen=True)
class ExportOptions:
    """Which masks, as what.

    Attributes:
        format: of the data set, a name among `CHOICES["format"]`.
        source: whose masks; `both` takes a task's predictions only where it has no annotation with masks.
        min_score: predicted regions below it are left out; those without a score too, if it is over 0.
        images: put the image files into the data set, or only their addresses in Label Studio.
        tolerance_px: how far a polygon's line may be from the mask's outline; 0: not at all.
        split: shares of train, val and test; they add up to 1.
        annotators: of a task's annotations the newest (one marked as ground truth goes first), or all of them.
        leave_out_unreachable: go on without images whose host does not answer, instead of stopping there.
    """

    format: str
    source: Source = "annotations"
    min_score: float = 0.0
    images: Images = "include"
    tolerance_px: float = 1.0
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    annotators: Annotators = "newest"
    leave_out_unreachable: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            BadInputError: one is not what it may be.
        """
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise BadInputError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if not 0 <= self.min_score <= 1:
            raise BadInputError(f"min_score must be between 0 and 1, got {self.min_score:g}")
        if not 0 <= self.tolerance_px <= _MOST_TOLERANCE_PX:
            raise BadInputError(
                f"tolerance_px must be between 0 and {_MOST_TOLERANCE_PX:g} px, got {self.tolerance_px:g}"
            )
        if not all(0 <= share <= 1 for share in self.split) or not math.isclose(sum(self.split), 1, abs_tol=1e-6):
            raise BadInputError(
                f"split must be three shares (train,val,test) that add up to 1, like 0.8,0.1,0.1, got {self.split}"
            )

    @property
    def splits(self) -> tuple[str, ...]:
        """Return the splits that have a share."""
        return tuple(name for name, share in zip(SPLITS, self.split, strict=True) if share > 0)

    def to_json(self) -> dict[str, Any]:
        """Return all of it, for the data set's own record of how it was made."""
        return {**asdict(self), "split": list(self.split)}


CHOICES: dict[str, tuple[str, ...]] = {
    "format": ("coco", "yolo-seg", "png", "parquet", "label-studio"),
    "source": get_args(Source),
    "images": get_args(Images),
    "annotators": get_args(Annotators),
}
"""Accepted values of the options that have a list of them; `formats.FORMATS` has the writers of the formats."""


def options_from_texts(texts: Mapping[str, str]) -> ExportOptions:
    """Read options as an address or a command line gives them; what is missing has its default.

    Raises:
        BadInputError: an unknown name, no format, or a value that does not fit.
    """
    known = [field.name for field in fields(ExportOptions)]
    unknown = sorted(texts.keys() - set(known))
    if unknown:
        raise BadInputError(f"unknown option {unknown[0]!r}: there are {', '.join(known)}")
    if "format" not in texts:
        raise BadInputError(f"format is missing: name one of {', '.join(CHOICES['format'])}")
    values: dict[str, Any] = dict(texts)
    for name in ("min_score", "tolerance_px"):
        if name in texts:
            values[name] = _number(name, texts[name])
    if "split" in texts:
        shares = tuple(_number("split", part) for part in texts["split"].split(","))
        if len(shares) != len(SPLITS):
            raise BadInputError(f"split must be three shares like 0.8,0.1,0.1, got {texts['split'][:40]!r}")
        values["split"] = shares
    if "leave_out_unreachable" in texts:
        values["leave_out_unreachable"] = _flag("leave_out_unreachable", texts["leave_out_unreachable"])
    return ExportOptions(**values)


def _flag(name: str, text: str) -> bool:
    if text.lower() not in ("1", "0", "true", "false"):
        raise BadInputError(f"{name} must be true or false, got {text[:40]!r}")
    return text.lower() in ("1", "true")


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadInputError(f"{name} must be a number, got {text[:40]!r}")
    return number
