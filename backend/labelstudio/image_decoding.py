"""Image files to RGB pixels, as a browser would show them: upright, 8 bits, over white.

Files come from anybody, so other processes decode them (`decoding_pool`), within bounds of memory and time.
"""

import atexit
import os

import numpy as np
from numpy.typing import NDArray

from backend.core.types import Image
from backend.errors import BadInputError
from backend.labelstudio.decoding_child import WANTS_ALPHA, WANTS_METADATA, WANTS_PIXELS
from backend.labelstudio.decoding_pool import ChildEndedError, DecodedFile, DecodingPool

DECODING_ENDS_AFTER_S = 5.0
"""After a SIGTERM: what is decoded then is killed, and the process ends with the rest of its work."""
_TRIES = 2


def decode_image(data: bytes, max_pixels: float = 120e6) -> Image:
    """Return the pixels of an image file.

    The EXIF orientation is applied, since browsers show, and Label Studio measures, the upright image. 16 bits are
    scaled to 8 (65535 -> 255), transparency is laid over white, of an animation the first frame is taken.

    Args:
        data: the file.
        max_pixels: the header is asked first; nothing larger is decoded.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        BadInputError: empty, not an image of the known formats, cut short or broken, over the limit, of floats, or it
            takes more time or memory than an image of its size may.
        DecodingUnavailableError: no process can be started to decode it, or this one is about to end.
    """
    return _decode(data, max_pixels, WANTS_PIXELS).pixels


def decode_file(data: bytes, max_pixels: float = 120e6) -> DecodedFile:
    """Return the pixels of an image file, as `decode_image`, and what it says of itself.

    Raises:
        BadInputError, DecodingUnavailableError: as `decode_image`.
    """
    return _decode(data, max_pixels, WANTS_METADATA)


def decode_reduced(data: bytes, max_pixels: float = 120e6, *, least_side_px: int) -> DecodedFile:
    """Return the pixels of an image file for a model that shrinks them anyway.

    A JPEG that is large enough is decoded at a half, a quarter or an eighth of its size, at a part of the time: the
    high frequencies that shrinking would average out are not decoded. All else comes as `decode_image` returns it.

    Args:
        data: the file.
        max_pixels: as `decode_image`.
        least_side_px: the square of this many pixels is left at least; 0: nothing is reduced.

    Raises:
        BadInputError, DecodingUnavailableError: as `decode_image`.
    """
    return _decode(data, max_pixels, WANTS_PIXELS, least_side_px)


def decode_alpha(data: bytes, max_pixels: float = 120e6) -> NDArray[np.uint8]:
    """Return the alpha of an image file, (H, W) uint8; 255 where it has no transparency.

    Raises:
        BadInputError, DecodingUnavailableError: as `decode_image`.
    """
    return np.ascontiguousarray(_decode(data, max_pixels, WANTS_ALPHA).pixels[:, :, 0])


def stop_decoding(*, after_s: float) -> None:
    """End what is being decoded in `after_s` seconds, and refuse all further files: this process is to end.

    For signal handlers too: takes no lock.
    """
    pool.stop_later(after_s)


def allow_decoding() -> None:
    """Take back `stop_decoding`."""
    pool.allow()


def _decode(data: bytes, max_pixels: float, wanted: int, least_side_px: int = 0) -> DecodedFile:
    if not data:
        raise BadInputError("image must have content, got an empty file: upload it again")
    for _ in range(_TRIES):
        try:
            decoded = pool.decode(data, max_pixels, wanted, least_side_px)
        except ChildEndedError as error:
            ended = error
        else:
            return decoded
    raise BadInputError(
        f"image must be decodable, got one that ended the process that decodes it {_TRIES} times ({ended}): save it "
        "anew, as a plain JPEG or PNG"
    )


pool = DecodingPool()
"""The pool of this process; a fork gets one of its own."""


def _start_anew() -> None:
    global pool
    pool.forget()
    pool = DecodingPool()


os.register_at_fork(after_in_child=_start_anew)
atexit.register(lambda: pool.end())
