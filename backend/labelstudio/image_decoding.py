"""Image files to RGB pixels, as a browser would show them: upright, 8 bits, over white."""

import logging
from collections.abc import Callable
from io import BytesIO

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from backend.core.types import Image
from backend.errors import BadInputError

logger = logging.getLogger(__name__)

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Pillow opens dozens more, some by starting other programs; labelers' browsers show none of them."""

_ORIENTATION_TAG = 0x0112
_TURNS: dict[object, Callable[[Image], Image]] = {
    2: lambda rgb: rgb[:, ::-1],
    3: lambda rgb: rgb[::-1, ::-1],
    4: lambda rgb: rgb[::-1],
    5: lambda rgb: rgb.transpose(1, 0, 2),
    6: lambda rgb: rgb.transpose(1, 0, 2)[:, ::-1],
    7: lambda rgb: rgb.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda rgb: rgb.transpose(1, 0, 2)[::-1],
}
"""From how the picture is stored to how it is shown, by EXIF orientation."""
_STRIP_ROWS = 512


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
            image.load()  # first: Pillow turns TIFFs itself while it loads them, and then drops their orientation
            orientation, rgb = _orientation(image), _to_rgb(image)
    except UnidentifiedImageError as error:
        raise BadInputError(
            f"image must be one of {', '.join(_FORMATS)}, got {len(data)} bytes of {_other_kind(data)}: upload it in "
            "one of these formats"
        ) from error
    except BadInputError:
        raise
    except MemoryError as error:
        raise BadInputError("image must fit into memory, got one that does not: make it smaller") from error
    except Exception as error:  # Pillow's plugins raise whatever their parsers stumble on
        raise BadInputError(
            f"image must be whole, got one that is cut short or broken ({type(error).__name__}): upload it again"
        ) from error
    return np.ascontiguousarray(_TURNS.get(orientation, _as_it_lies)(rgb))


def file_kind(data: bytes) -> str:
    """Return the format of an image file that `decode_image` takes, as Pillow names it ("JPEG")."""
    with PIL.Image.open(BytesIO(data), formats=_FORMATS) as image:
        return str(image.format)


def _other_kind(data: bytes) -> str:
    """Name what a file seems to be, without any of its bytes: what was fetched may not be meant for who reads this."""
    start = data[:512].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page (a login, or a proxy's error)"
    if start.startswith((b"<svg", b"<?xml")):
        return "SVG or another XML format"
    if start.startswith((b"{", b"[")):
        return "JSON"
    return "PDF" if start.startswith(b"%pdf") else "an unknown format"


def _as_it_lies(rgb: Image) -> Image:
    return rgb


def _orientation(image: PIL.Image.Image) -> object:
    """The EXIF orientation that browsers follow; None without one.

    Not of WebP, nor that of XMP or of a PNG's text, which Pillow's getexif() takes too: browsers ignore all three
    (seen with Chromium 156, whose pixels are the same as ours for all else).
    """
    raw = image.info.get("exif")
    if not raw or image.format == "WEBP":
        return None
    try:
        exif = PIL.Image.Exif()
        exif.load(raw)
        return exif.get(_ORIENTATION_TAG)
    except Exception:  # browsers show an image with broken EXIF as it lies
        logger.warning("image with unreadable EXIF: its orientation is not applied", exc_info=True)
        return None


def _to_rgb(image: PIL.Image.Image) -> Image:
    if image.mode == "F":
        raise BadInputError("image must be of 8 or 16 bits, got floats, whose range is unknown: convert it to 8 bits")
    width, height = image.size
    rgb = np.empty((height, width, 3), np.uint8)
    # In strips: Pillow keeps 4 bytes a pixel, and each conversion of a whole image would be another copy of it.
    for top in range(0, height, _STRIP_ROWS):
        bottom = min(top + _STRIP_ROWS, height)
        rgb[top:bottom] = _strip_to_rgb(image.crop((0, top, width, bottom)))
    return rgb


def _strip_to_rgb(strip: PIL.Image.Image) -> NDArray[np.uint8]:
    if strip.mode.startswith("I"):
        gray = np.asarray(strip).astype(np.int64).clip(0, 65535)
        return ((gray * 255 + 32767) // 65535).astype(np.uint8)[:, :, None]
    if strip.has_transparency_data:
        shown = PIL.Image.new("RGBA", strip.size, "white")
        shown.alpha_composite(strip.convert("RGBA"))
        strip = shown
    return np.asarray(strip.convert("RGB"))
