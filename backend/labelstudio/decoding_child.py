"""Run as a script: decodes image files that may be made to do harm, within bounds of memory and time.

`decoding_pool` starts it, sends it files over a socket (its standard input) and gets pixels back. A file that takes
more than its bounds ends this process and nothing else. Imports Pillow, NumPy and the standard library only: it has to
start at once, to stay small, and to hold no secret.
"""

import contextlib
import json
import logging
import os
import re
import resource
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from io import BytesIO
from typing import Any

# What an isolated interpreter does not find by itself, its parent names.
sys.path += [folder for folder in sys.argv[1:] if __name__ == "__main__" and folder not in sys.path]

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import AvifImagePlugin, JpegImagePlugin, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Pillow opens dozens more, some by starting other programs; labelers' browsers show none of them."""
REQUEST = struct.Struct("!QdBI")
"""Bytes of the file, most pixels, what is wanted of it, least side (see `answer`); the file follows."""
WANTS_PIXELS, WANTS_METADATA, WANTS_ALPHA = range(3)
"""Kinds of requests: pixels; these and the orientation that Pillow finds anywhere; alpha in place of the colours."""
READY = b"!"
"""Sent by the child once, when it can decode a file."""
ANSWER = struct.Struct("!cI")
"""Kind and bytes of a part of the answer: `DESCRIPTION`, then `PIXELS` until all rows are there; or `REJECTION`."""
DESCRIPTION, PIXELS, REJECTION = b"D", b"P", b"R"
SECONDS = 30.0
"""Limit for one file. A picture of 120 megapixels takes 1 to 6 s."""
BYTES_A_PIXEL = 32
"""Bytes of memory: Pillow keeps 4, decoders up to 24 more (AVIF with its frames, WebP with its canvases)."""
SPARE_BYTES = 128 << 20
"""Bytes of memory that a decoder takes whatever the size of the picture."""
MOST_SCANS = 100
"""Scans of a JPEG: programs write about 10, and each costs as much time as the whole picture."""
MOST_TILE_PIXELS = 1 << 24
"""Pixels of a tile, if the TIFF itself has fewer; a decoder takes the memory of a whole tile at once."""

_LEAST_REDUCED_PX = 64
"""A reduced JPEG keeps at least so many pixels in each direction: of a narrow one each row counts."""
_ORIENTATION_TAG = 0x0112
_STRIP_BYTES = 1 << 20
"""Bytes of pixels sent at a time: stays in a processor's cache, and larger ones cost a page fault for each 4 kB."""
_NEXT_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""After the bytes of a scan: not a 255 of them, which a 0 follows, nor a restart."""


class RefusedError(Exception):
    """The file is not decoded; the message says why."""


def serve(connection: socket.socket) -> None:
    """Answer requests until the other side is gone."""
    own_bytes = own_memory_bytes()
    connection.sendall(READY)
    with connection.makefile("rb") as requests:
        while len(head := requests.read(REQUEST.size)) == REQUEST.size:
            size, max_pixels, wanted, least_side_px = REQUEST.unpack(head)
            data = requests.read(size)
            if len(data) < size:
                return
            # The system ends this process then, whatever a decoder does: its parent may be gone, or too busy.
            signal.setitimer(signal.ITIMER_REAL, SECONDS + 1)
            try:
                for kind, part in answer(data, max_pixels, wanted, own_bytes, least_side_px):
                    connection.sendall(ANSWER.pack(kind, len(part)))
                    connection.sendall(part)
            except OSError:
                return  # nobody is there any more
            finally:
                del data
                signal.setitimer(signal.ITIMER_REAL, 0)


def answer(
    data: bytes, max_pixels: float, wanted: int, own_bytes: int | None, least_side_px: int = 0
) -> Iterator[tuple[bytes, bytes | memoryview]]:
    """Yield the parts of the answer about a file.

    Args:
        data: the file.
        max_pixels: nothing larger is decoded.
        wanted: one of `WANTS_PIXELS`, `WANTS_METADATA`, `WANTS_ALPHA`.
        own_bytes: memory of this process before, to which that of the file is added; None: it is not bounded.
        least_side_px: a JPEG may be decoded at a half, a quarter or an eighth of its size if the square of this many
            pixels is left; 0: never.
    """
    try:
        yield from _decoded(data, max_pixels, wanted, own_bytes, least_side_px)
    except RefusedError as rejection:
        yield REJECTION, str(rejection).encode()
    except UnidentifiedImageError:
        yield (
            REJECTION,
            f"image must be one of {', '.join(FORMATS)}, got {len(data)} bytes of {_other_kind(data)}: upload it in "
            "one of these formats".encode(),
        )
    except MemoryError:
        yield (
            REJECTION,
            b"image must be decodable in the memory that its size gives reason for, got one that takes more: save it "
            b"anew, as a plain JPEG or PNG",
        )
    except Exception as error:  # Pillow's plugins raise whatever their parsers stumble on
        yield (
            REJECTION,
            f"image must be whole, got one that is cut short or broken ({type(error).__name__}): upload it "
            "again".encode(),
        )


def _decoded(
    data: bytes, max_pixels: float, wanted: int, own_bytes: int | None, least_side_px: int
) -> Iterator[tuple[bytes, bytes | memoryview]]:
    _check_scans(data)
    width, height = _webp_size(data)
    _check_size(width, height, max_pixels)
    _bound_memory(own_bytes, len(data), width * height)
    # Pillow's own limit is global, lower than ours and a warning or an error by turns; the size is checked right below.
    PIL.Image.MAX_IMAGE_PIXELS = None
    with PIL.Image.open(BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        _check_size(width, height, max_pixels)
        check_tiles(image)
        _bound_memory(own_bytes, len(data), width * height)
        kind = str(image.format)
        whole = image.size
        _reduce(image, least_side_px)
        image.load()  # first: Pillow turns TIFFs itself while it loads them, and then drops their orientation
        if image.mode == "F":
            raise RefusedError(
                "image must be of 8 or 16 bits, got floats, whose range is unknown: convert it to 8 bits"
            )
        whole = image.size if kind == "TIFF" else whole  # turned by Pillow while it was loaded
        width, height = image.size
        description = {"width": width, "height": height, "kind": kind, "orientation": _orientation(image)}
        description |= {"whole_width": whole[0], "whole_height": whole[1]}
        if wanted == WANTS_METADATA:
            description["has_orientation"] = _has_orientation(data)
        yield DESCRIPTION, json.dumps(description).encode()
        # In strips: Pillow keeps 4 bytes a pixel, and each conversion of a whole image would be another copy of it.
        rows = max(1, _STRIP_BYTES // (3 * width))
        for top in range(0, height, rows):
            strip = image.crop((0, top, width, min(top + rows, height)))
            shown = _strip_to_alpha(strip) if wanted == WANTS_ALPHA else _strip_to_rgb(strip)
            yield PIXELS, np.ascontiguousarray(shown).data.cast("B")


def _reduce(image: PIL.Image.Image, least_side_px: int) -> None:
    """Have a JPEG decoded at a part of its size: its decoder then skips the high frequencies, and most of the time."""
    if not least_side_px or not isinstance(image, JpegImagePlugin.JpegImageFile):
        return
    width, height = image.size
    for part in (8, 4, 2):
        reduced = width // part, height // part
        if reduced[0] * reduced[1] >= least_side_px**2 and min(reduced) >= _LEAST_REDUCED_PX:
            image.draft(None, reduced)
            return


def _check_size(width: int, height: int, max_pixels: float) -> None:
    if width * height > max_pixels:
        raise RefusedError(
            f"image must have at most {max_pixels / 1e6:g} megapixels, got {width} x {height} = "
            f"{width * height / 1e6:.1f}: make it smaller or raise SOFTMATCHER_MAX_IMAGE_MPX"
        )


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return the width and height that a WebP declares; 0, 0 for all else.

    Pillow takes the memory of two whole pictures as soon as it opens one.
    """
    kind = data[12:16] if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else b""
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return 0, 0


def _check_scans(data: bytes) -> None:
    """Refuse a JPEG with so many scans that it would take minutes.

    Raises:
        RefusedError: it has.
    """
    if not data.startswith(b"\xff\xd8"):
        return
    position, scans = 2, 0
    while (found := _NEXT_MARKER.search(data, position)) is not None and data[found.start() + 1] != 0xD9:
        marker, position = data[found.start() + 1], found.end()
        scans += marker == 0xDA
        if scans > MOST_SCANS:
            raise RefusedError(
                f"JPEG must have up to {MOST_SCANS} scans, got more, each of which takes the time of a whole picture: "
                "save it anew"
            )
        if marker not in (0x01, 0xD8):
            position += int.from_bytes(data[position : position + 2], "big")


def check_tiles(image: PIL.Image.Image) -> None:
    """Refuse a TIFF whose tiles are far larger than the picture.

    Raises:
        RefusedError: they are.
    """
    if image.format != "TIFF":
        return
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    tile_width, tile_height = tags.get(322), tags.get(323)
    if not isinstance(tile_width, int) or not isinstance(tile_height, int):
        return
    width, height = image.size
    if tile_width * tile_height > max(MOST_TILE_PIXELS, 4 * width * height):
        raise RefusedError(
            f"TIFF of {width} x {height} px must have tiles of about that size, got {tile_width} x {tile_height} px: "
            "save it anew"
        )


def _bound_memory(own_bytes: int | None, file_bytes: int, pixels: int) -> None:
    if own_bytes is not None:
        most = own_bytes + SPARE_BYTES + 3 * file_bytes + BYTES_A_PIXEL * pixels
        with contextlib.suppress(ValueError, OSError):  # a system that has no such limit, or a lower one
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def own_memory_bytes() -> int | None:
    """Return the address space that this process has by now; None where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return None


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


def _orientation(image: PIL.Image.Image) -> int | None:
    """Return the EXIF orientation that browsers follow; None without one.

    Not of WebP, nor that of XMP or of a PNG's text, which Pillow's getexif() takes too: browsers ignore all three
    (seen with Chromium 156, whose pixels are the same as ours for all else). Browsers show an image with broken EXIF as
    it lies.
    """
    raw = image.info.get("exif")
    if not raw or image.format == "WEBP":
        return None
    with contextlib.suppress(Exception):
        exif = PIL.Image.Exif()
        exif.load(raw)
        found = exif.get(_ORIENTATION_TAG)
        return found if isinstance(found, int) else None
    return None


def _has_orientation(data: bytes) -> bool:
    """Return whether Pillow finds an orientation other than 1 anywhere, or metadata that it cannot read."""
    try:
        with PIL.Image.open(BytesIO(data), formats=FORMATS) as image:
            return bool(image.getexif().get(_ORIENTATION_TAG, 1) != 1)
    except Exception:  # Pillow's parsers raise whatever they stumble on
        return True


def _strip_to_rgb(strip: PIL.Image.Image) -> NDArray[np.uint8]:
    if strip.mode.startswith("I"):
        gray = np.asarray(strip).astype(np.int64).clip(0, 65535)
        return np.repeat(((gray * 255 + 32767) // 65535).astype(np.uint8)[:, :, None], 3, axis=2)
    if strip.has_transparency_data:
        shown = PIL.Image.new("RGBA", strip.size, "white")
        shown.alpha_composite(strip.convert("RGBA"))
        strip = shown
    return np.asarray(strip.convert("RGB"))


def _strip_to_alpha(strip: PIL.Image.Image) -> NDArray[np.uint8]:
    return np.repeat(np.asarray(strip.convert("RGBA"))[:, :, 3:], 3, axis=2)


def _end_with(connection: socket.socket) -> None:
    """End this process as soon as the other side of the connection is gone, in the middle of an image too."""
    poller = select.poll()
    poller.register(connection, 0)
    poller.poll()
    os._exit(0)


def main() -> None:
    """Serve the connection that is the standard input."""
    # Ctrl-C in a terminal is for the parent, which ends this process when it ends itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = socket.socket(fileno=os.dup(0))
    threading.stack_size(256 << 10)
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    # What decoders write there about damaged files is for nobody: the answer says what is wrong.
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    logging.disable()
    PIL.Image.init()
    # Each thread of a decoder takes memory of its own, and several files are decoded at a time already.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 2
    serve(connection)


if __name__ == "__main__":
    main()
