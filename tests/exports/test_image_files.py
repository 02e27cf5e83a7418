"""An image file of a data set is the same picture for every reader."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, ImageOps
from PIL import Image as PillowImage

from backend.exports.image_files import carries_orientation, read_image
from backend.labelstudio.image_decoding import decode_image
from testing.fakes import draw

PICTURE = PillowImage.fromarray(draw((48, 64), red=(10, 10, 30, 30)))
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)
SPACED_XMP = XMP.replace(b'tiff:Orientation="6"/>', b"><tiff:Orientation > 6</tiff:Orientation></rdf:Description>")


def _exif(orientation: int) -> PillowImage.Exif:
    exif = PillowImage.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def _saved(kind: str, **more: object) -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, kind, **more)
    return buffer.getvalue()


def _mpo(orientation: int) -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "MPO", save_all=True, append_images=[PICTURE], exif=_exif(orientation))
    return buffer.getvalue()


def _with_chunk(kind: bytes, body: bytes, *, is_late: bool) -> bytes:
    """A PNG with a further chunk, right after its header or before its end."""
    plain = _saved("PNG")
    at = len(plain) - 12 if is_late else 33
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return plain[:at] + chunk + plain[at:]


def _raw_profile(orientation: int) -> bytes:
    """What ImageMagick writes into a PNG's text."""
    block = b"Exif\0\0" + _exif(orientation).tobytes()[6:]
    return f"\nexif\n{len(block):8}\n{block.hex()}\n".encode()


def _jpeg_with_segment(body: bytes) -> bytes:
    plain = _saved("JPEG", quality=95)
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]


TURNED = {
    "jpeg": _saved("JPEG", exif=_exif(6)),
    "jpeg mirrored": _saved("JPEG", exif=_exif(2)),
    "jpeg, xmp": _jpeg_with_segment(b"http://ns.adobe.com/xap/1.0/\0" + XMP),
    "jpeg, xmp as an element": _jpeg_with_segment(b"http://ns.adobe.com/xap/1.0/\0" + SPACED_XMP),
    "jpeg, invalid": _saved("JPEG", exif=_exif(9)),
    "mpo": _mpo(6),
    "webp": _saved("WEBP", exif=_exif(6), lossless=True),
    "webp, xmp": _saved("WEBP", xmp=XMP, lossless=True),
    "png": _saved("PNG", exif=_exif(6)),
    "png, exif behind the pixels": _with_chunk(b"eXIf", _exif(6).tobytes()[6:], is_late=True),
    "png, xmp": _with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP, is_late=False),
    "png, xmp behind the pixels": _with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP, is_late=True),
    "png, packed xmp": _with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP), is_late=False),
    "png, text": _with_chunk(b"tEXt", b"Raw profile type exif\0" + _raw_profile(6), is_late=False),
    "png, packed text": _with_chunk(
        b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(_raw_profile(6)), is_late=True
    ),
    "png, text of another name": _with_chunk(b"tEXt", b"Raw profile type APP1\0" + _raw_profile(6), is_late=False),
    "tiff": _saved("TIFF", tiffinfo={ExifTags.Base.Orientation: 6}),
    "avif": _saved("AVIF", exif=_exif(6)),
}
PLAIN = {
    "jpeg": _saved("JPEG"),
    "jpeg that says upright": _saved("JPEG", exif=_exif(1)),
    "mpo": _mpo(1),
    "webp": _saved("WEBP"),
    "png": _saved("PNG"),
    "png with other text": _with_chunk(b"tEXt", b"Comment\0Orientation is a word", is_late=True),
    "bmp": _saved("BMP"),
    "tiff": _saved("TIFF"),
    "tiff that says upright": _saved("TIFF", tiffinfo={ExifTags.Base.Orientation: 1}),
    "avif": _saved("AVIF"),
}


def _with_pillow(content: bytes) -> NDArray[Any]:
    with PillowImage.open(io.BytesIO(content)) as image:
        image.load()
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def _without_turning(content: bytes) -> NDArray[Any]:
    with PillowImage.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def _with_opencv(content: bytes) -> NDArray[Any]:
    return np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR))[..., ::-1]


READERS: tuple[Callable[[bytes], NDArray[Any]], ...] = (_with_pillow, _without_turning, _with_opencv)


@pytest.mark.parametrize("name", TURNED)
def test_an_image_with_any_orientation_is_stored_upright_without_one(name: str) -> None:
    content = TURNED[name]
    file = read_image(content, 10**6)
    assert file.stored is not None
    assert file.extension == ".png"
    assert not carries_orientation(file.stored)
    shown = decode_image(content)
    assert file.size_hw == shown.shape[:2]
    for reader in READERS:
        assert np.array_equal(reader(file.stored), shown), reader


@pytest.mark.parametrize("name", PLAIN)
def test_an_image_that_all_readers_agree_about_keeps_its_bytes(name: str) -> None:
    file = read_image(PLAIN[name], 10**6)
    assert file.stored == PLAIN[name]
    assert file.extension == {"jpeg": ".jpg", "mpo": ".jpg", "tiff": ".tif"}.get(name.split()[0], f".{name.split()[0]}")


def test_a_gif_becomes_a_png_of_its_first_frame() -> None:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "GIF", save_all=True, append_images=[PillowImage.new("RGB", PICTURE.size, "blue")])
    file = read_image(buffer.getvalue(), 10**6)
    assert file.stored is not None
    assert file.extension == ".png"
    assert np.array_equal(_with_opencv(file.stored), decode_image(buffer.getvalue()))


@given(st.binary(max_size=200), st.sampled_from(sorted(TURNED)), st.data())
def test_damaged_metadata_are_no_crash(noise: bytes, name: str, data: st.DataObject) -> None:
    content = TURNED[name]
    at = data.draw(st.integers(0, len(content)))
    assert carries_orientation(content[:at] + noise + content[at + len(noise) :]) in (True, False)


@pytest.mark.parametrize("magic", [b"II*\0", b"MM\0*"])
def test_a_file_full_of_blocks_takes_no_time(magic: bytes) -> None:
    assert carries_orientation(PLAIN["png"] + magic * 1_000_000)
