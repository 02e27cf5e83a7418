"""Image files to RGB pixels, as a browser would show them: upright, 8 bits, over white."""

import logging
from io import BytesIO

import numpy as np
import PIL.Image
from PIL import UnidentifiedImageError
from PIL.Image import Transpose

from backend.core.types import Image
from backend.errors import BadInputError

logger = logging.getLogger(__name__)

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Pillow opens dozens more, some by starting other programs; labelers' browsers show none of them."""

_ORIENTATION_TAG = 0x0112
_TURNS: dict[object, Transpose] = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def decode_image(data: bytes, max_pixels: float = 120e6) -> Image:
    """The pixels of an image file.

    The EXIF orientation is applied, since browsers show, and Label Studio measures, the upright image. 16 bits are
    scaled to 8 (65535 -> 255), transparency is laid over white, of an animation the first frame is taken.

    Args:
        data: the file.
        max_pixels: the header is asked first; nothing larger is decoded.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        BadInputError: empty, not an image of the known formats, cut short or broken, over the limit, of floats.
    """
    if not data:
        raise BadInputError("image must have content, got an empty file: upload it again")
    # Pillow's own limit is global, lower than ours and a warning or an error by turns; the size is checked right below.
    PIL.Image.MAX_IMAGE_PIXELS = None
    try:
        with PIL.Image.open(BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadInputError(
                    f"image must have at most {max_pixels / 1e6:g} megapixels, got {width} x {height} = "
                    f"{width * height / 1e6:.1f}: make it smaller or raise SOFTMATCHER_MAX_IMAGE_MPX"
                )
            turn = _TURNS.get(_orientation(image))
            return _to_rgb(image.transpose(turn) if turn is not None else image)
    except UnidentifiedImageError as error:
        raise BadInputError(
            f"image must be one of {', '.join(_FORMATS)}, got {len(data)} bytes that begin with {data[:12]!r}: upload "
            "it in one of these formats"
        ) from error
    except BadInputError:
        raise
    except MemoryError as error:
        raise BadInputError("image must fit into memory, got one that does not: make it smaller") from error
    except Exception as error:  # Pillow's plugins raise whatever their parsers stumble on
        raise BadInputError(
            f"image must be whole, got one that is cut short or broken ({error}): upload it again"
        ) from error


def _orientation(image: PIL.Image.Image) -> object:
    try:
        return image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # browsers show an image with broken EXIF as it lies
        logger.warning("image with unreadable EXIF: its orientation is not applied", exc_info=True)
        return None


def _to_rgb(image: PIL.Image.Image) -> Image:
    if image.mode == "F":
        raise BadInputError("image must be of 8 or 16 bits, got floats, whose range is unknown: convert it to 8 bits")
    if image.mode.startswith("I"):
        gray = np.asarray(image).astype(np.int64).clip(0, 65535)
        return np.repeat(((gray * 255 + 32767) // 65535).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        shown = PIL.Image.new("RGBA", image.size, "white")
        shown.alpha_composite(image.convert("RGBA"))
        image = shown
    return np.array(image.convert("RGB"))
