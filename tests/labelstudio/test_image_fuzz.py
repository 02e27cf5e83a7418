"""Damaged and hostile image files of six formats end as pixels or as a refusal: no crash, no hang, bounded memory.

600 files; SOFTMATCHER_TEST_FUZZ_CASES=20000 for more.
"""

import io
import os
import random
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from backend.errors import BadInputError
from backend.labelstudio import image_decoding
from backend.labelstudio.decoding_pool import DecodingChild, DecodingPool
from backend.labelstudio.image_decoding import decode_file
from testing.fakes import draw

CASES = int(os.environ.get("SOFTMATCHER_TEST_FUZZ_CASES", "600"))
MAX_PIXELS = 4e6
MOST_KILOBYTES = 500_000
"""Of a child: 32 bytes for each of those pixels, 128 MB, Python and its packages."""
_EXTREME = [0, 1, 2, 3, 7, 8, 16, 255, 256, 4096, 32767, 32768, 65535, 2**16, 2**20, 2**24, 2**31 - 1, 2**31, 2**32 - 1]


def _saved(picture: PIL.Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    # Copies: a picture keeps settings of the encoder that it was saved with.
    more = {
        name: [each.copy() for each in value] if name == "append_images" else value for name, value in options.items()
    }
    picture.copy().save(buffer, kind, **more)
    return buffer.getvalue()


def _seeds() -> dict[str, list[bytes]]:
    picture = PIL.Image.fromarray(draw((40, 56), red=(8, 8, 20, 20), blue=(30, 10, 16, 24)))
    alpha, palette, frames = picture.convert("RGBA"), picture.quantize(32), [picture.rotate(90), picture.rotate(180)]
    deep = PIL.Image.fromarray(np.arange(40 * 56, dtype=np.uint16).reshape(40, 56) * 29)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    several: dict[str, Any] = {"save_all": True, "append_images": frames}
    return {
        "JPEG": [
            _saved(picture, "JPEG", exif=exif), _saved(picture, "JPEG", progressive=True),
            _saved(picture.convert("L"), "JPEG", restart_marker_rows=1), _saved(picture.convert("CMYK"), "JPEG"),
            _saved(picture, "MPO", **several),
        ],
        "PNG": [
            _saved(picture, "PNG"), _saved(alpha, "PNG", exif=exif), _saved(palette, "PNG", transparency=3),
            _saved(deep, "PNG"), _saved(picture, "PNG", **several),
        ],
        "WEBP": [
            _saved(picture, "WEBP", exif=exif), _saved(alpha, "WEBP", lossless=True), _saved(alpha, "WEBP", **several),
        ],
        "GIF": [_saved(palette, "GIF"), _saved(picture, "GIF", interlace=1), _saved(picture, "GIF", **several)],
        "TIFF": [
            _saved(picture, "TIFF", exif=exif), _saved(picture, "TIFF", compression="tiff_lzw"),
            _saved(alpha, "TIFF", compression="tiff_adobe_deflate", big_tiff=True), _saved(deep, "TIFF"),
            _saved(picture.convert("1"), "TIFF", compression="group4"), _saved(picture, "TIFF", compression="jpeg"),
            _saved(palette, "TIFF", compression="packbits"), _saved(picture, "TIFF", **several),
        ],
        "BMP": [
            _saved(picture, "BMP"), _saved(palette, "BMP"), _saved(alpha, "BMP"), _saved(picture.convert("1"), "BMP"),
        ],
    }  # fmt: skip


SEEDS = _seeds()


def _changed(data: bytes, choose: random.Random) -> bytes:
    """Return the file with up to eight changes, most of them near its start, where sizes and tables are."""
    changed = bytearray(data)
    for _ in range(choose.randint(0, 8)):
        at = choose.randrange(max(1, min(len(changed), choose.choice((64, 400, 1 << 30)))))
        what = choose.randrange(6)
        if what == 0:
            changed[at : at + 1] = bytes([choose.randrange(256)])
        elif what == 1:
            kind = choose.choice(("<H", ">H", "<I", ">I"))
            number = choose.choice(_EXTREME) & (0xFFFF if kind[1] == "H" else 0xFFFFFFFF)
            changed[at : at + struct.calcsize(kind)] = struct.pack(kind, number)
        elif what == 2:
            changed[at:at] = choose.randbytes(choose.randint(1, 12))
        elif what == 3:
            del changed[at : at + choose.randint(1, 12)]
        elif what == 4:
            piece = bytes(changed[at : at + choose.randint(1, 200)])
            changed[at:at] = piece * choose.randint(1, 50)
        else:
            changed[at : at + 1] = bytes([changed[at] ^ (1 << choose.randrange(8))]) if changed else b""
    if choose.random() < 0.2:
        del changed[choose.randrange(len(changed) + 1) :]
    return bytes(changed)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[DecodingPool]:
    pool = DecodingPool()
    monkeypatch.setattr(image_decoding, "pool", pool)
    yield pool
    pool.end()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", SEEDS)
def test_any_file_is_decoded_or_refused(kind: str, pool: DecodingPool) -> None:
    outcomes: Counter[str] = Counter()
    most_kilobytes = 0
    for number in range(CASES // len(SEEDS)):
        choose = random.Random(f"{kind} {number}")
        data = _changed(choose.choice(SEEDS[kind]), choose)
        try:
            decoded = decode_file(data, MAX_PIXELS)
        except BadInputError as error:
            told = str(error)
            assert "longer" not in told, f"{kind} {number} takes too long"
            assert "ended the process" not in told, f"{kind} {number}: {told}"
            outcomes[told.partition(",")[0]] += 1
        else:
            assert decoded.pixels.dtype == np.uint8
            assert decoded.pixels.shape[2] == 3
            assert decoded.pixels.size <= 3 * MAX_PIXELS
            outcomes["pixels"] += 1
        if number % 20 == 0:
            most_kilobytes = max(most_kilobytes, *(_most_kilobytes(child) for child in pool.idle))
    print(kind, dict(outcomes), f"{most_kilobytes // 1000} MB")  # noqa: T201
    assert outcomes["pixels"], "nothing got as far as the pixels"
    assert len(outcomes) > 1, "nothing was refused"
    assert most_kilobytes < MOST_KILOBYTES


def _most_kilobytes(child: DecodingChild) -> int:
    status = Path(f"/proc/{child.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])
