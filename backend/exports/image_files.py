"""Image files as a data set holds them: every reader shows them as Label Studio does."""

import hashlib
import io
import itertools
import re
import struct
import zlib
from collections.abc import Iterator

from PIL import Image as PillowImage

from backend.core.types import Image
from backend.exports.records import ImageFile
from backend.labelstudio.image_decoding import decode_file

_EXTENSIONS = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif"}
"""MPO, the photographs of some telephones, is a JPEG with more pictures behind it."""
_ORIENTATION_TAG = 0x0112
_XMP_ORIENTATION = re.compile(rb"Orientation\s*(?:=\s*[\"']|>)\s*([0-9]+)")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_METADATA = re.compile(rb"(?i:xml:com\.adobe\.xmp|raw profile type )")
_MOST_TEXT_BYTES = 1 << 20
_MOST_PARTS = 100
"""EXIF blocks or texts of a file that are looked at; one with more is no photograph, and is written anew."""
_MOST_ENTRIES = 1000
"""Entries of an EXIF directory that are looked at: they are sorted, and the orientation is among the first."""
_UNKNOWN = 0


def read_image(content: bytes, max_pixels: int) -> ImageFile:
    """Look at an image file as it was fetched, and write it anew as PNG if readers would not agree about it.

    That is a file with any orientation in its metadata, which some readers apply and others don't, and a GIF, which
    OpenCV and Ultralytics do not read.

    Raises:
        BadInputError: it cannot be read.
    """
    decoded = decode_file(content, max_pixels)
    stored, extension = content, _EXTENSIONS.get(decoded.kind, f".{decoded.kind.lower()}")
    if decoded.kind == "GIF" or decoded.has_orientation or carries_orientation(content):
        stored, extension = _to_png(decoded.pixels), ".png"
    height, width = decoded.pixels.shape[:2]
    return ImageFile(
        hashlib.sha256(content).hexdigest(), (height, width), extension, hashlib.sha256(stored).hexdigest(), stored
    )


def carries_orientation(content: bytes) -> bool:
    """Return whether a reader can find an orientation other than 1 in the bytes of an image file.

    Which of EXIF, XMP, a PNG's text or an AVIF's own turn a reader applies differs, so all of them count, wherever
    they stand in the file. What Pillow finds beside them, `decode_file` returns.
    """
    return any(value != 1 for part in _metadata(content) for value in _orientations(part))


def _metadata(content: bytes) -> Iterator[bytes]:
    """Yield the file itself, and what a PNG has as compressed or hexadecimal text."""
    yield content
    if content.startswith(_PNG_SIGNATURE):
        yield from itertools.islice(_png_texts(content), _MOST_PARTS)


def _orientations(part: bytes) -> Iterator[int]:
    """Yield the value of each orientation, of XMP and of each EXIF block, that bytes hold."""
    yield from (int(found[1][:3]) for found in _XMP_ORIENTATION.finditer(part))
    for magic, order in ((b"II*\0", "<"), (b"MM\0*", ">")):
        start = part.find(magic)
        for _ in range(_MOST_PARTS):
            if start < 0:
                break
            yield from _exif_orientations(part, start, order)
            start = part.find(magic, start + 1)
        else:
            yield _UNKNOWN


def _exif_orientations(part: bytes, start: int, order: str) -> Iterator[int]:
    """Yield the orientation in the first directory of the EXIF block, a TIFF, at `start`."""
    try:
        (offset,) = struct.unpack_from(f"{order}I", part, start + 4)
        (count,) = struct.unpack_from(f"{order}H", part, start + offset)
        for number in range(min(count, _MOST_ENTRIES)):
            tag, kind, values, value = struct.unpack_from(f"{order}HHIH", part, start + offset + 2 + 12 * number)
            if tag == _ORIENTATION_TAG and kind == 3 and values == 1:
                yield value
    except struct.error:  # cut short, or bytes of pixels that look like the start of a block
        return


def _png_texts(content: bytes) -> Iterator[bytes]:
    """Yield the metadata in text chunks, before the pixels or after them."""
    position = len(_PNG_SIGNATURE)
    while position + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, position)
        keyword, _, text = content[position + 8 : position + 8 + size].partition(b"\0")
        if kind in (b"tEXt", b"zTXt", b"iTXt") and _PNG_METADATA.match(keyword):
            yield _png_text(kind, keyword, text)
        position += 12 + size


def _png_text(kind: bytes, keyword: bytes, text: bytes) -> bytes:
    is_compressed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] == b"\1")
    if kind == b"zTXt":
        text = text[1:]
    elif kind == b"iTXt":  # compression's flag and method, language, translated keyword
        text = text[2:].split(b"\0", 2)[-1]
    if is_compressed:
        try:
            text = zlib.decompressobj().decompress(text, _MOST_TEXT_BYTES)
        except zlib.error:
            return b""  # no reader has it
    if keyword.lower().startswith(b"raw profile"):  # ImageMagick's: a name, a length, hexadecimal digits
        digits = re.sub(rb"[^0-9a-fA-F]", b"", b"".join(text.split()[2:]))
        return bytes.fromhex(digits[: len(digits) // 2 * 2].decode())
    return text


def _to_png(pixels: Image) -> bytes:
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
