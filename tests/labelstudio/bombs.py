"""Small image files that ask a decoder for gigabytes or minutes."""

import io
import struct
import zlib

import PIL.Image


def tiff_with_a_huge_tile(side: int = 32768) -> bytes:
    """A TIFF of 8 x 8 px, 150 bytes, whose only tile has `side` x `side` px of 2 bytes."""
    entries = [
        (256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 16), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1),
        (322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, 134), (325, 4, 1, 16),
    ]  # fmt: skip
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", 0) + zlib.compress(bytes(64))


def progressive_jpeg_with_scans(count: int, width: int = 64, height: int = 64) -> bytes:
    """A progressive JPEG whose last scan is there again and again, `count` scans in all."""
    buffer = io.BytesIO()
    PIL.Image.new("L", (width, height), 90).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    start = data.rfind(b"\xff\xda")
    tables = data.rfind(b"\xff\xc4", 0, start)
    scan = data[tables:-2]
    return data[:-2] + scan * (count - data.count(b"\xff\xda")) + data[-2:]
