"""Train, val or test: by the content of the image, so that copies stay together and more tasks move none."""

from collections.abc import Sequence

from backend.exports.options import SPLITS

_RANGE = 1 << 64


def split_of(sha256: str, shares: Sequence[float]) -> str:
    """Return the split that an image belongs to.

    The hash is a number in [0, 1) as evenly spread as if it were drawn; the shares cut that range in their order. It
    depends on this image alone. If the shares change, images move between neighbours only.

    Args:
        sha256: of the image file's bytes, hex.
        shares: of train, val and test, adding up to 1.
    """
    position = int(sha256[:16], 16) / _RANGE
    upper = 0.0
    for name, share in zip(SPLITS, shares, strict=True):
        upper += share
        if share > 0 and position < upper:
            return name
    # The shares may add up to a hair less than 1.
    return [name for name, share in zip(SPLITS, shares, strict=True) if share > 0][-1]
