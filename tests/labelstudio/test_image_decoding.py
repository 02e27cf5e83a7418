"""Image files to pixels: every way a labeler's picture can be stored, broken or too large."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import PIL.Image
import pytest
from PIL.Image import Transpose
from PIL.PngImagePlugin import PngInfo

from backend.errors import BadInputError
from backend.labelstudio.image_decoding import decode_image, decode_reduced

UNDO = {
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}
"""What a camera did to the upright picture to store it with that orientation."""


def upright() -> PIL.Image.Image:
    """32 x 24 with a different colour in each quarter: no turn or flip looks like another."""
    pixels = np.zeros((24, 32, 3), np.dtype(np.uint8))
    pixels[:12, :16] = 200, 0, 0
    pixels[:12, 16:] = 0, 200, 0
    pixels[12:, :16] = 0, 0, 200
    pixels[12:, 16:] = 200, 200, 0
    return PIL.Image.fromarray(pixels)


def saved(image: PIL.Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG of that size that ends where its pixels should begin."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"")


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_shown_upright(kind: str, orientation: int) -> None:
    turn = UNDO[orientation]
    stored = upright() if turn is None else upright().transpose(turn)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(saved(stored, kind, exif=exif))

    assert decoded.shape == (24, 32, 3)
    assert np.abs(decoded[4:8, 4:12].astype(int) - (200, 0, 0)).max() < 30
    assert np.abs(decoded[16:20, 20:28].astype(int) - (200, 200, 0)).max() < 30


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_jpeg_is_upright_too_and_names_its_natural_size(orientation: int) -> None:
    large, turn = upright().resize((805, 605), PIL.Image.Resampling.NEAREST), UNDO[orientation]
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = saved(large if turn is None else large.transpose(turn), "JPEG", exif=exif)
    decoded = decode_reduced(data, least_side_px=160)

    assert decoded.size_hw == (605, 805)
    assert decoded.is_reduced
    assert decoded.pixels.shape == (152, 202, 3)  # a quarter: an eighth would be less than 160 x 160 pixels
    assert np.abs(decoded.pixels[40, 40].astype(int) - (200, 0, 0)).max() < 30
    assert np.abs(decoded.pixels[120, 160].astype(int) - (200, 200, 0)).max() < 30
    assert decode_image(data).shape == (605, 805, 3)


@pytest.mark.parametrize("part", [2, 4, 8])
def test_a_reduced_jpeg_is_the_shrunk_image(part: int) -> None:
    y, x = np.mgrid[:960, :1280] / 80.0
    pixels = np.stack([127 + 120 * np.sin(x + y), 127 + 120 * np.sin(x - y), 127 + 120 * np.cos(y)], axis=2)
    data = saved(PIL.Image.fromarray(pixels.astype(np.uint8)), "JPEG", quality=95)
    reduced = decode_reduced(data, least_side_px=1108 // part)  # sqrt(960 * 1280) = 1108.5
    shrunk = np.asarray(PIL.Image.fromarray(decode_image(data)).reduce(part))

    assert reduced.pixels.shape == (960 // part, 1280 // part, 3)
    assert np.abs(reduced.pixels.astype(int) - shrunk).mean() < 2


@pytest.mark.parametrize(("kind", "size", "least_side_px"), [
    ("PNG", (640, 480), 64), ("JPEG", (640, 480), 0), ("JPEG", (640, 480), 500), ("JPEG", (4000, 90), 64),
])  # fmt: skip
def test_what_is_not_reduced_comes_whole(kind: str, size: tuple[int, int], least_side_px: int) -> None:
    data = saved(upright().resize(size), kind)
    decoded = decode_reduced(data, least_side_px=least_side_px)

    assert not decoded.is_reduced
    assert np.array_equal(decoded.pixels, decode_image(data))


def test_a_reduced_jpeg_is_refused_by_its_natural_size() -> None:
    data = saved(upright().resize((800, 600)), "JPEG")
    with pytest.raises(BadInputError, match="megapixels"):
        decode_reduced(data, 400_000, least_side_px=64)


def xmp(orientation: int) -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
        f'tiff:Orientation="{orientation}"/></rdf:RDF></x:xmpmeta>'
    ).encode()


def test_an_orientation_that_browsers_ignore_is_ignored() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    text = PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n" + f"{len(exif.tobytes()):8d}\n{exif.tobytes().hex()}\n")
    for data in (
        saved(upright(), "WEBP", exif=exif, lossless=True),
        saved(upright(), "JPEG", xmp=xmp(6)),
        saved(upright(), pnginfo=text),
    ):
        with PIL.Image.open(io.BytesIO(data)) as image:
            assert image.getexif().get(0x0112) == 6, "Pillow alone would turn it"
        assert decode_image(data).shape == (24, 32, 3)


def test_an_orientation_that_does_not_exist_changes_nothing() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 9

    assert np.array_equal(decode_image(saved(upright(), exif=exif)), np.asarray(upright()))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_does_not_spoil_the_picture() -> None:
    data = saved(upright(), "JPEG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")

    assert decode_image(data).shape == (24, 32, 3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_to_8(kind: str) -> None:
    deep = np.array([[0, 128, 257], [256 * 128, 65534, 65535]], np.uint16)
    decoded = decode_image(saved(PIL.Image.fromarray(deep), kind))

    assert decoded.shape == (2, 3, 3)
    assert decoded[:, :, 0].tolist() == [[0, 0, 1], [128, 255, 255]]
    assert (decoded == decoded[:, :, :1]).all()


def test_16_bit_rgb_png_is_scaled_to_8() -> None:
    rows = b"\0" + struct.pack(">HHH", 65535, 32896, 0)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")

    assert decode_image(png).tolist() == [[[255, 128, 0]]]


def test_a_palette_gives_its_colours() -> None:
    assert np.array_equal(decode_image(saved(upright().quantize(16))), np.asarray(upright()))


def test_transparency_is_laid_over_white() -> None:
    rgba = PIL.Image.fromarray(np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], np.uint8))
    assert decode_image(saved(rgba)).tolist() == [[[10, 20, 30], [255, 255, 255], [127, 127, 127]]]

    gray = PIL.Image.fromarray(np.array([[[10, 255], [10, 0]]], np.uint8), "LA")
    assert decode_image(saved(gray)).tolist() == [[[10, 10, 10], [255, 255, 255]]]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_a_palette_with_transparency_is_laid_over_white(transparency: int | bytes) -> None:
    palette = PIL.Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 1, 2, 3])
    palette.putpixel((1, 0), 1)

    assert decode_image(saved(palette, transparency=transparency)).tolist() == [[[9, 8, 7], [255, 255, 255]]]


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
def test_other_modes_become_rgb(mode: str) -> None:
    decoded = decode_image(saved(upright().convert(mode)))

    assert (decoded.shape, decoded.dtype) == ((24, 32, 3), np.dtype(np.uint8))
    assert decoded.flags.writeable


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_the_formats_of_browsers_are_read(kind: str) -> None:
    decoded = decode_image(saved(upright(), kind))

    assert decoded.shape == (24, 32, 3)
    assert np.abs(decoded[2:10, 2:14].astype(int) - (200, 0, 0)).mean() < 12


def test_cmyk_jpeg_keeps_its_colours() -> None:
    decoded = decode_image(saved(upright().convert("CMYK"), "JPEG", quality=95))

    assert np.abs(decoded[4:8, 4:12].astype(int) - (200, 0, 0)).max() < 40


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [PIL.Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])

    assert decode_image(data)[0, 0].tolist() == [255, 0, 0]


def test_one_pixel_is_an_image() -> None:
    assert decode_image(saved(PIL.Image.new("RGB", (1, 1), "red"))).tolist() == [[[255, 0, 0]]]


@pytest.mark.slow
def test_an_image_of_108_megapixels_is_decoded_without_a_warning() -> None:
    decoded = decode_image(saved(PIL.Image.new("1", (12000, 9000), 1)))

    assert decoded.shape == (9000, 12000, 3)
    assert decoded[4500, 6000].tolist() == [255, 255, 255]


@pytest.mark.parametrize(("width", "height"), [(12000, 10001), (60000, 60000), (2**31 - 1, 2**31 - 1)])
def test_more_pixels_than_the_limit_are_refused_by_the_header_alone(width: int, height: int) -> None:
    with pytest.raises(BadInputError, match=rf"at most 120 megapixels, got {width} x {height} .*MAX_IMAGE_MPX"):
        decode_image(png_header(width, height))


def test_the_limit_can_be_lowered() -> None:
    with pytest.raises(BadInputError, match=r"at most 0\.0007 megapixels, got 32 x 24"):
        decode_image(saved(upright()), max_pixels=700)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_a_file_cut_short_is_refused(kind: str) -> None:
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    data = saved(noise, kind)
    for kept in (len(data) // 2, len(data) // 4):
        with pytest.raises(BadInputError, match=r"image must be (whole|one of)"):
            decode_image(data[:kept])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "got an empty file"),
        (b"<!DOCTYPE html><html>", r"got 21 bytes of a web page"),
        (b'{"token": "secret"}', r"got 19 bytes of JSON: upload"),
        (b"%PDF-1.7", "must be one of JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "must be one of JPEG, PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "must be one of JPEG, PNG"),
        (b"\xff\xd8\xff\xe0" + bytes(50), r"image must be (whole|one of)"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), r"image must be (whole|one of)"),
        (png_header(10, 10), r"image must be (whole|one of)"),
        (bytes(1000), "must be one of JPEG, PNG"),
    ],
)
def test_what_is_not_an_image_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        decode_image(data)


def test_floats_are_refused() -> None:
    with pytest.raises(BadInputError, match="got floats"):
        decode_image(saved(PIL.Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))
